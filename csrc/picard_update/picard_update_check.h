// Checks the arguments of parasample::picard_update and turns them into a PicardUpdate.
#pragma once

#include <optional>

#include "common/checks.h"
#include "picard_update/picard_update.h"

namespace parasample {

struct PicardUpdateTensors {
  Tensor states, anchors, outputs;
  std::optional<Tensor> noise;
  Tensor state_coef, anchor_coef, output_coef, noise_coef, x0_coef, residual_scale, begin, hold, end;
  std::optional<Tensor> weights, directions;
};

// Shapes, dtypes, layout and devices; reads no tensor data. `residual` of the result is left null.
// `op` names who asks.
PicardUpdate check_picard_update(const PicardUpdateTensors& tensors, const char* op, int64_t max_history);

// The longest range of the batch. For the CPU, where ranges can be read for free.
int64_t check_ranges(const PicardUpdate& call, const char* op);

// Residuals of a CPU call from the chunks' sums of squared changes, [B, num_chunks, longest].
void write_residual(const PicardUpdate& call, const double* partial, int64_t num_chunks, int64_t longest);

// The dtype of coefficients and residual: float64 for float64 states, else float32.
ScalarType real_dtype(const PicardUpdate& call);

}  // namespace parasample
