// dense_update solves what picard_update does, for histories of any length, up to all steps before: K = 1 .. T.
// A call is a PicardUpdate without directions.
#pragma once

#include "picard_update/picard_update.h"

namespace parasample {

// ---- CPU -------------------------------------------------------------------------------------------------

// D is cut into chunks of this many elements whatever the number of threads; a chunk of all rows of a sample of
// 1000 steps then takes 3 MB, and one of a usual window stays in the second-level cache.
constexpr int64_t kDenseChunk = 256;

// Elements (of float64, or float32) of the workspace that a work item needs for ranges of at most `longest` steps.
static inline int64_t dense_workspace(const PicardUpdate& call, int64_t longest) {
  const int64_t rows = longest + call.history + 2 < call.num_steps + 1 ? longest + call.history + 2 : call.num_steps + 1;
  return (3 * rows + 2) * kDenseChunk;
}

// Runs work item (sample, chunk): writes its states and each row's sum of squared changes to partial[i - begin].
using DenseKernel = void (*)(const PicardUpdate& call, int64_t sample, int64_t chunk, void* workspace, double* partial);

DenseKernel select_dense_update_cpu();

// ---- CUDA ------------------------------------------------------------------------------------------------

// Elements of the workspace of a CUDA call.
int64_t dense_workspace_cuda(const PicardUpdate& call);

// Enqueues the update on `stream` (a cudaStream_t), in two launches, and returns at once: null, or an error in words.
const char* launch_dense_update_cuda(const PicardUpdate& call, void* workspace, void* stream);

}  // namespace parasample
