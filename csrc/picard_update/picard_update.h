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

// How a call is cut for the device.
struct CudaPlan {
  int32_t width;           // elements per thread: 4 with vector loads, or 1
  int32_t threads;         // per block
  uint32_t blocks;         // per sample
  int32_t depth;           // rows in flight
  // Shared memory, in bytes from its start: a ring of coefficients, squared changes, a ring of rows in flight.
  int32_t squares_at, rows_at;
  int32_t row_bytes;                              // of all threads' slots of one row
  int32_t outputs_at, noise_at, directions_at;    // within them; anchors come first
  int32_t shared_bytes;
};

// Elements (over all samples) from which on 4 per thread still give every multiprocessor a block: an H200 has 132.
constexpr int64_t kWideFrom = 4 * 128 * 128;

CudaPlan plan_picard_update_cuda(const PicardUpdate& call, int64_t wide_from = kWideFrom);

// Enqueues the update on `stream` (a cudaStream_t), in one launch, and returns at once: null, or an error in words.
// The workspace holds real [B, T+1, plan.blocks] and needs no preparation.
const char* launch_picard_update_cuda(const PicardUpdate& call, const CudaPlan& plan, void* workspace, void* stream);

}  // namespace parasample
