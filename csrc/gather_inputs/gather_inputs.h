// One gather_inputs call as raw pointers: what the bindings hand to the CPU and CUDA kernels.
// No torch header here, so that nvcc and the per-instruction-set CPU files never see one.
#pragma once

#include "common/rows.h"

namespace parasample {

struct GatherInputs {
  Rows states;             // [T+1, B, D]
  Rows result;             // [copies * n, D], contiguous
  const int64_t* steps;    // [n]
  const int64_t* samples;  // [n]
  const void* scale;       // double [T] for kFloat64 states, else float; or absent
  int64_t num_steps;       // T
  int64_t num_samples;     // B
  int64_t num_elements;    // D
  int64_t num_items;       // n
  int64_t copies;
};

// ---- CPU -------------------------------------------------------------------------------------------------

// Elements of a work item; two blocks of it stay inside a 32 KiB first-level cache.
constexpr int64_t kGatherChunk = 1024;

using GatherKernel = void (*)(const GatherInputs& call, int64_t item, int64_t chunk);

GatherKernel select_gather_inputs_cpu();

// ---- CUDA ------------------------------------------------------------------------------------------------

// As launch_drift_aggregate_cuda does, on `stream`: null, or what went wrong.
const char* launch_gather_inputs_cuda(const GatherInputs& call, void* stream);

}  // namespace parasample
