// Chooses the variant of the CPU kernel that this processor runs.
#include <cstdlib>
#include <cstring>

#include "picard_update.h"

namespace parasample {

void picard_update_baseline(const PicardUpdate&, int64_t, int64_t, double*);
#if defined(PARASAMPLE_X86_VARIANTS)
void picard_update_avx2(const PicardUpdate&, int64_t, int64_t, double*);
void picard_update_avx512(const PicardUpdate&, int64_t, int64_t, double*);
#endif

namespace {

struct Variant {
  const char* isa;
  CpuKernel kernel;
  bool supported;
};

Variant select() {
  const char* wanted = std::getenv("PARASAMPLE_CPU_ISA");
#if defined(PARASAMPLE_X86_VARIANTS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Variant fastest_first[] = {
      {"avx512", picard_update_avx512, avx512},
      {"avx2", picard_update_avx2, avx2},
  };
  for (const Variant& variant : fastest_first) {
    if (variant.supported && (wanted == nullptr || std::strcmp(wanted, variant.isa) == 0)) return variant;
  }
#endif
  (void)wanted;
  return {"baseline", picard_update_baseline, true};
}

const Variant& selected() {
  static const Variant variant = select();
  return variant;
}

}  // namespace

CpuKernel select_cpu_kernel() { return selected().kernel; }
const char* selected_cpu_isa() { return selected().isa; }

}  // namespace parasample

// For `parasample doctor`, through ctypes.
extern "C" __attribute__((visibility("default"))) const char* parasample_cpu_isa() {
  return parasample::selected_cpu_isa();
}
