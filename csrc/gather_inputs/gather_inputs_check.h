// Checks the arguments of parasample::gather_inputs and turns them into a GatherInputs.
#pragma once

#include <optional>

#include "common/checks.h"
#include "gather_inputs/gather_inputs.h"

namespace parasample {

// Shapes, dtypes, layout and devices; reads no tensor data. `result` has its dtype and stride, no memory yet.
GatherInputs check_gather_inputs(const Tensor& states, const Tensor& steps, const Tensor& samples,
                                 const std::optional<Tensor>& scale, int64_t copies, ScalarType dtype);

}  // namespace parasample
