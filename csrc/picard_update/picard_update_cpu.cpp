// Chooses the variant of the CPU kernel that this processor runs.
#include "common/cpu_isa.h"
#include "picard_update/picard_update.h"

namespace parasample {

void picard_update_baseline(const PicardUpdate&, int64_t, int64_t, double*);
#if defined(PARASAMPLE_X86_VARIANTS)
void picard_update_avx2(const PicardUpdate&, int64_t, int64_t, double*);
void picard_update_avx512(const PicardUpdate&, int64_t, int64_t, double*);
#endif

PARASAMPLE_SELECT_VARIANT(CpuKernel, picard_update)

}  // namespace parasample
