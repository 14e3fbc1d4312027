// The CUDA implementation of drift_aggregate.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "drift_aggregate/drift_aggregate_check.h"

namespace parasample {
namespace {

Tensor drift_aggregate_cuda(Tensor conditional, std::optional<Tensor> unconditional,
                            std::optional<Tensor> guidance, std::optional<Tensor> rescale,
                            std::optional<Tensor> states, std::optional<Tensor> conversion) {
  DriftAggregate call =
      check_drift_aggregate({conditional, unconditional, guidance, rescale, states, conversion});
  const int32_t device = conditional.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const ScalarType real = call.is_double ? ScalarType::Double : ScalarType::Float;
  Tensor result = torch::stable::new_empty(conditional, {call.num_rows, call.num_elements}, real);
  if (call.num_rows == 0 || call.num_elements == 0) return result;
  call.result = result.data_ptr();
  // The allocator keeps the workspace alive for work on this stream after it is freed here.
  Tensor workspace = torch::stable::new_empty(conditional, {cuda_drift_workspace(call)}, real);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const char* error = launch_drift_aggregate_cuda(call, workspace.data_ptr(), stream);
  STD_TORCH_CHECK(error == nullptr, "drift_aggregate: the CUDA launch failed: ", error);
  return result;
}

}  // namespace
}  // namespace parasample

STABLE_TORCH_LIBRARY_IMPL(parasample, CUDA, m) {
  m.impl("drift_aggregate", TORCH_BOX(&parasample::drift_aggregate_cuda));
}
