// Chooses the variants of the CPU kernels that this processor runs.
#include "common/cpu_isa.h"
#include "drift_aggregate/drift_aggregate.h"

namespace parasample {

void drift_moments_baseline(const DriftAggregate&, int64_t, int64_t, DriftMoments*);
void drift_convert_baseline(const DriftAggregate&, int64_t, int64_t, double);
#if defined(PARASAMPLE_X86_VARIANTS)
void drift_moments_avx2(const DriftAggregate&, int64_t, int64_t, DriftMoments*);
void drift_convert_avx2(const DriftAggregate&, int64_t, int64_t, double);
void drift_moments_avx512(const DriftAggregate&, int64_t, int64_t, DriftMoments*);
void drift_convert_avx512(const DriftAggregate&, int64_t, int64_t, double);
#endif

PARASAMPLE_SELECT_VARIANT(DriftMomentsKernel, drift_moments)
PARASAMPLE_SELECT_VARIANT(DriftConvertKernel, drift_convert)

}  // namespace parasample
