// The CUDA implementation of gather_inputs.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "gather_inputs/gather_inputs_check.h"

namespace parasample {
namespace {

Tensor gather_inputs_cuda(Tensor states, Tensor steps, Tensor samples, std::optional<Tensor> scale,
                          int64_t copies, ScalarType dtype) {
  GatherInputs call = check_gather_inputs(states, steps, samples, scale, copies, dtype);
  STD_TORCH_CHECK(call.num_items == 0 || (call.num_steps > 0 && call.num_samples > 0),
                  "gather_inputs: states must have a row to gather from, found ", shape_of(states),
                  "; pass no steps, or a trajectory");
  const int32_t device = states.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor result = torch::stable::new_empty(states, {copies * call.num_items, call.num_elements}, dtype);
  if (call.num_items == 0 || call.num_elements == 0) return result;
  call.result.data = result.data_ptr();
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const char* error = launch_gather_inputs_cuda(call, stream);
  STD_TORCH_CHECK(error == nullptr, "gather_inputs: the CUDA launch failed: ", error);
  return result;
}

}  // namespace
}  // namespace parasample

STABLE_TORCH_LIBRARY_IMPL(parasample, CUDA, m) {
  m.impl("gather_inputs", TORCH_BOX(&parasample::gather_inputs_cuda));
}
