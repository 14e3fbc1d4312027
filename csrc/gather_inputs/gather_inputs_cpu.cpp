// Chooses the variant of the CPU kernel that this processor runs.
#include "common/cpu_isa.h"
#include "gather_inputs/gather_inputs.h"

namespace parasample {

void gather_inputs_baseline(const GatherInputs&, int64_t, int64_t);
#if defined(PARASAMPLE_X86_VARIANTS)
void gather_inputs_avx2(const GatherInputs&, int64_t, int64_t);
void gather_inputs_avx512(const GatherInputs&, int64_t, int64_t);
#endif

PARASAMPLE_SELECT_VARIANT(GatherKernel, gather_inputs)

}  // namespace parasample
