// Chooses the variant of the CPU kernel that this processor runs.
#include "common/cpu_isa.h"
#include "dense_update/dense_update.h"

namespace parasample {

void dense_update_baseline(const PicardUpdate&, int64_t, int64_t, void*, double*);
#if defined(PARASAMPLE_X86_VARIANTS)
void dense_update_avx2(const PicardUpdate&, int64_t, int64_t, void*, double*);
void dense_update_avx512(const PicardUpdate&, int64_t, int64_t, void*, double*);
#endif

PARASAMPLE_SELECT_VARIANT(DenseKernel, dense_update)

}  // namespace parasample
