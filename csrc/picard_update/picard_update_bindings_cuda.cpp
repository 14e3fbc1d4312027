// The CUDA implementation of picard_update.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "picard_update/picard_update_check.h"

namespace parasample {
namespace {

Tensor picard_update_cuda(Tensor states, Tensor anchors, Tensor outputs, std::optional<Tensor> noise,
                          Tensor state_coef, Tensor anchor_coef, Tensor output_coef, Tensor noise_coef,
                          Tensor x0_coef, Tensor residual_scale, Tensor begin, Tensor hold, Tensor end,
                          std::optional<Tensor> weights, std::optional<Tensor> directions) {
  PicardUpdate call = check_picard_update({states, anchors, outputs, noise, state_coef, anchor_coef, output_coef,
                                           noise_coef, x0_coef, residual_scale, begin, hold, end, weights,
                                           directions}, "picard_update", kMaxHistory);
  const int32_t device = states.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t rows = call.num_steps + 1, samples = call.num_samples;
  Tensor residual = torch::stable::new_empty(residual_scale, {rows, samples});
  if (samples == 0) return residual;
  call.residual = residual.data_ptr();
  const CudaPlan plan = plan_picard_update_cuda(call);
  // The allocator keeps the workspace alive for work on this stream after it is freed here.
  Tensor workspace = torch::stable::new_empty(residual_scale, {samples, rows, int64_t(plan.blocks)});
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const char* error = launch_picard_update_cuda(call, plan, workspace.data_ptr(), stream);
  STD_TORCH_CHECK(error == nullptr, "picard_update: the CUDA launch failed: ", error);
  return residual;
}

}  // namespace
}  // namespace parasample

STABLE_TORCH_LIBRARY_IMPL(parasample, CUDA, m) {
  m.impl("picard_update", TORCH_BOX(&parasample::picard_update_cuda));
}
