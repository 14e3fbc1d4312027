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
PicardUpdate check_picard_update(const PicardUpdateTensors& tensors);

// The dtype of coefficients and residual: float64 for float64 states, else float32.
ScalarType real_dtype(const PicardUpdate& call);

}  // namespace parasample
