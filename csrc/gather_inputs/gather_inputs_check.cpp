#include "gather_inputs/gather_inputs_check.h"

namespace parasample {

GatherInputs check_gather_inputs(const Tensor& states, const Tensor& steps, const Tensor& samples,
                                 const std::optional<Tensor>& scale, int64_t copies, ScalarType dtype) {
  STD_TORCH_CHECK(states.dim() == 3 && states.size(0) >= 1,
                  "gather_inputs: states must have shape [T+1, B, D] with T >= 0, found ", shape_of(states),
                  "; flatten the sample to D elements");
  STD_TORCH_CHECK(steps.dim() == 1, "gather_inputs: steps must have shape [n], found ", shape_of(steps),
                  "; flatten it");
  STD_TORCH_CHECK(copies >= 1, "gather_inputs: copies must be 1 or more, found ", copies,
                  "; pass 2 for guidance in one batch, else 1");
  const Checks check("gather_inputs", states, "states", "states [T+1, B, D] sets T, steps [n] sets n");
  GatherInputs call{};
  call.num_steps = states.size(0) - 1;
  call.num_samples = states.size(1);
  call.num_elements = states.size(2);
  call.num_items = steps.size(0);
  call.copies = copies;
  check.shape("samples", samples, {call.num_items}, "[n]");
  call.states = check.rows("states", states);
  call.result = {nullptr, call.num_elements, 0, check.float_dtype("dtype", dtype)};
  call.steps = static_cast<const int64_t*>(check.table("steps", steps, ScalarType::Long));
  call.samples = static_cast<const int64_t*>(check.table("samples", samples, ScalarType::Long));
  if (scale) {
    check.shape("scale", *scale, {call.num_steps}, "[T]");
    call.scale = check.table("scale", *scale,
                             call.states.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float);
  }
  return call;
}

}  // namespace parasample
