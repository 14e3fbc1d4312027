// One picard_update call as raw pointers: what the bindings hand to the CPU and CUDA kernels.
// No torch header here, so that nvcc and the per-instruction-set CPU files never see one.
#pragma once

#include "common/rows.h"

namespace parasample {

// "real" below is double when states are kFloat64, else float.
struct PicardUpdate {
  Rows states;   // [T+1, B, D], rows begin+1 .. end are overwritten
  Rows anchors;  // [T+1, B, D], may be exactly the memory of states
  Rows outputs;  // [T, B, D]
  Rows noise;    // [T, B, D] or absent
  Rows directions;             // [T, B, R, D] or absent; stride_row and stride_sample are those of T and B
  int64_t stride_direction;    // of R in directions, in elements
  const void* state_coef;      // real [T, K]
  const void* anchor_coef;     // real [T, K]
  const void* output_coef;     // real [T, K]
  const void* noise_coef;      // real [T]
  const void* x0_coef;         // real [T, 2]
  const void* residual_scale;  // real [T+1]
  const void* weights;         // real [T, B, R] or null
  const int64_t* begin;        // [B]
  const int64_t* hold;         // [B]
  const int64_t* end;          // [B]
  void* residual;              // real [T+1, B]
  int64_t num_steps;           // T
  int64_t num_samples;         // B
  int64_t num_elements;        // D
  int32_t history;             // K, 1 .. kMaxHistory
  int32_t rank;                // R, 1 .. kMaxRank, or 0 without corrections
};

// The deepest linear multistep scheduler (PNDM) reads four earlier outputs besides the current one.
constexpr int kMaxHistory = 5;
// More directions would make their rows, not the outputs, what a round has to read.
constexpr int kMaxRank = 8;

// ---- CPU -------------------------------------------------------------------------------------------------

// D is cut into chunks of this many elements whatever the number of threads, so that sums over D always
// combine in the same order. Deep histories use shorter chunks to stay inside a 32 KiB first-level cache.
// (static: see common/cpu_convert.h on inline functions and instruction sets)
static inline int64_t cpu_chunk(int history) { return history <= 2 ? 1024 : 512; }

// Runs work item (sample, chunk): writes its states and, for each row i+1 of the sample's range, the sum of
// squared changes of this chunk to partial[i - begin].
using CpuKernel = void (*)(const PicardUpdate& call, int64_t sample, int64_t chunk, double* partial);

CpuKernel select_picard_update_cpu();

// ---- CUDA ------------------------------------------------------------------------------------------------

// Partial sums per row and sample that the CUDA kernel writes; the workspace holds real [T+1, B, this].
int64_t cuda_num_partials(const PicardUpdate& call);

// Enqueues the update on `stream` (a cudaStream_t) and returns at once; the result is a cudaError_t.
int launch_picard_update_cuda(const PicardUpdate& call, void* workspace, void* stream);
const char* cuda_error_text(int error);

}  // namespace parasample
