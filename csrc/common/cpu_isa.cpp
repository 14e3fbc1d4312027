#include "common/cpu_isa.h"

#include <cstdlib>
#include <cstring>

namespace parasample {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

CpuIsa detect() {
#if defined(PARASAMPLE_X86_VARIANTS)
  const char* wanted = std::getenv("PARASAMPLE_CPU_ISA");
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const auto chosen = [&](CpuIsa isa, bool supported) {
    return supported && (wanted == nullptr || std::strcmp(wanted, kNames[int(isa)]) == 0);
  };
  if (chosen(CpuIsa::kAvx512, avx512)) return CpuIsa::kAvx512;
  if (chosen(CpuIsa::kAvx2, avx2)) return CpuIsa::kAvx2;
#endif
  return CpuIsa::kBaseline;
}

}  // namespace

CpuIsa cpu_isa() {
  static const CpuIsa isa = detect();
  return isa;
}
const char* cpu_isa_name() { return kNames[int(cpu_isa())]; }

}  // namespace parasample

// For `parasample doctor`, through ctypes.
extern "C" __attribute__((visibility("default"))) const char* parasample_cpu_isa() {
  return parasample::cpu_isa_name();
}
