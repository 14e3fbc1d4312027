// CPU kernels are compiled once per instruction set; the best one that this processor runs is chosen at run time.
#pragma once

namespace parasample {

enum class CpuIsa { kBaseline, kAvx2, kAvx512 };

// The best that this processor runs; PARASAMPLE_CPU_ISA=baseline|avx2|avx512 asks for a lesser one.
CpuIsa cpu_isa();
const char* cpu_isa_name();

}  // namespace parasample

// In a *_cpu_kernel.cpp: the name of this variant of a function.
#define PARASAMPLE_CONCAT_(a, b) a##_##b
#define PARASAMPLE_CONCAT(a, b) PARASAMPLE_CONCAT_(a, b)
#define PARASAMPLE_VARIANT(name) PARASAMPLE_CONCAT(name, PARASAMPLE_ISA)

// In a *_cpu.cpp: defines `Type select_name_cpu()`, which returns the variant of `name` to run.
#if defined(PARASAMPLE_X86_VARIANTS)
#define PARASAMPLE_SELECT_VARIANT(Type, name)              \
  Type select_##name##_cpu() {                             \
    switch (cpu_isa()) {                                   \
      case CpuIsa::kAvx512: return name##_avx512;          \
      case CpuIsa::kAvx2: return name##_avx2;              \
      default: return name##_baseline;                     \
    }                                                      \
  }
#else
#define PARASAMPLE_SELECT_VARIANT(Type, name) \
  Type select_##name##_cpu() { return name##_baseline; }
#endif
