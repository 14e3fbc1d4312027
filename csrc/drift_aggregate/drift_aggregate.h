// One drift_aggregate call as raw pointers: what the bindings hand to the CPU and CUDA kernels.
// No torch header here, so that nvcc and the per-instruction-set CPU files never see one.
#pragma once

#include "common/rows.h"

namespace parasample {

// Columns of a conversion: data = p x + q m is clipped to low .. high, then y = a x + b clipped + c (data -
// clipped), the last term only where c is not zero.
constexpr int kInState = 0, kInOutput = 1;               // p, q
constexpr int kOutState = 2, kOutData = 3, kOutCut = 4;  // a, b, c
constexpr int kLow = 5, kHigh = 6, kConversion = 7;

// "real" below is double where conditional or states are kFloat64, else float. Absent arguments are null.
struct DriftAggregate {
  Rows conditional;      // [n, D]
  Rows unconditional;    // [n, D] of conditional's dtype, or absent
  Rows states;           // [n, D] or absent: no conversion
  const void* guidance;    // real [n], beside unconditional
  const void* rescale;     // real [n] or absent; needs unconditional
  const void* conversion;  // real [n, kConversion], beside states
  void* result;            // real [n, D], contiguous
  int64_t num_rows;      // n
  int64_t num_elements;  // D
  bool is_double;        // real is double
};

// ---- CPU -------------------------------------------------------------------------------------------------

// Elements of a chunk: three blocks of it stay inside a 32 KiB first-level cache. Sums combine chunk by chunk
// in a fixed order, whatever the number of threads.
constexpr int64_t kDriftChunk = 1024;

// Mean and sum of squared deviations of m_c and of the guided m over a chunk. In every face means count from
// the row's first element and squares from the chunk's own mean: an offset common to a row costs no digits.
struct DriftMoments {
  double mean_conditional, squares_conditional, mean_guided, squares_guided;
};

using DriftMomentsKernel = void (*)(const DriftAggregate& call, int64_t row, int64_t chunk,
                                    DriftMoments* moments);
// `factor` multiplies the guided m: 1, or what rescaling comes to.
using DriftConvertKernel = void (*)(const DriftAggregate& call, int64_t row, int64_t chunk, double factor);

DriftMomentsKernel select_drift_moments_cpu();
DriftConvertKernel select_drift_convert_cpu();

// ---- CUDA ------------------------------------------------------------------------------------------------

// Real numbers that the CUDA kernels need as workspace.
int64_t cuda_drift_workspace(const DriftAggregate& call);

// Enqueues the work on `stream` (a cudaStream_t); returns at once, null or CUDA's words for what went wrong.
const char* launch_drift_aggregate_cuda(const DriftAggregate& call, void* workspace, void* stream);

}  // namespace parasample
