// The CUDA implementation of dense_update.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <limits>

#include "dense_update/dense_update.h"
#include "picard_update/picard_update_check.h"

namespace parasample {
namespace {

Tensor dense_update_cuda(Tensor states, Tensor anchors, Tensor outputs, std::optional<Tensor> noise,
                         Tensor state_coef, Tensor anchor_coef, Tensor output_coef, Tensor noise_coef,
                         Tensor x0_coef, Tensor residual_scale, Tensor begin, Tensor hold, Tensor end) {
  PicardUpdate call = check_picard_update({states, anchors, outputs, noise, state_coef, anchor_coef, output_coef,
                                           noise_coef, x0_coef, residual_scale, begin, hold, end, {}, {}},
                                          "dense_update", std::numeric_limits<int32_t>::max());
  const int32_t device = states.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor residual = torch::stable::new_empty(residual_scale, {call.num_steps + 1, call.num_samples});
  if (call.num_samples == 0) return residual;
  call.residual = residual.data_ptr();
  // The allocator keeps the workspace alive for work on this stream after it is freed here.
  Tensor workspace = torch::stable::new_empty(residual_scale, {dense_workspace_cuda(call)});
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const char* error = launch_dense_update_cuda(call, workspace.data_ptr(), stream);
  STD_TORCH_CHECK(error == nullptr, "dense_update: the CUDA launch failed: ", error);
  return residual;
}

}  // namespace
}  // namespace parasample

STABLE_TORCH_LIBRARY_IMPL(parasample, CUDA, m) {
  m.impl("dense_update", TORCH_BOX(&parasample::dense_update_cuda));
}
