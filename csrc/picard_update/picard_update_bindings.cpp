// The schema of picard_update and its CPU implementation, against the LibTorch stable ABI: one binary for many torch
// versions.
#include <torch/csrc/stable/library.h>

#include <memory>

#include "picard_update/picard_update_check.h"

namespace parasample {
namespace {

// Scalar multiply-adds below which another thread costs more than it brings (a few microseconds of work).
constexpr int64_t kMinWorkPerThread = 32768;

Tensor picard_update_cpu(Tensor states, Tensor anchors, Tensor outputs, std::optional<Tensor> noise,
                         Tensor state_coef, Tensor anchor_coef, Tensor output_coef, Tensor noise_coef,
                         Tensor x0_coef, Tensor residual_scale, Tensor begin, Tensor hold, Tensor end,
                         std::optional<Tensor> weights, std::optional<Tensor> directions) {
  PicardUpdate call = check_picard_update({states, anchors, outputs, noise, state_coef, anchor_coef, output_coef,
                                           noise_coef, x0_coef, residual_scale, begin, hold, end, weights,
                                           directions}, "picard_update", kMaxHistory);
  const int64_t longest = check_ranges(call, "picard_update");
  Tensor residual = torch::stable::new_empty(residual_scale, {call.num_steps + 1, call.num_samples});
  call.residual = residual.data_ptr();

  const int64_t chunk_size = cpu_chunk(call.history);
  const int64_t num_chunks = (call.num_elements + chunk_size - 1) / chunk_size;
  const int64_t num_items = longest > 0 ? call.num_samples * num_chunks : 0;
  const std::unique_ptr<double[]> partial(new double[num_items * longest]);
  if (num_items > 0) {
    const CpuKernel kernel = select_picard_update_cpu();
    const int64_t item_work = longest * (num_chunks == 1 ? call.num_elements : chunk_size);
    const auto run = [&](int64_t first, int64_t last) {
      for (int64_t item = first; item < last; ++item) {
        kernel(call, item / num_chunks, item % num_chunks, partial.get() + item * longest);
      }
    };
    const int64_t grain = kMinWorkPerThread / item_work + 1;
    if (grain >= num_items) {
      run(0, num_items);
    } else {
      torch::stable::parallel_for(0, num_items, grain, run);
    }
  }
  write_residual(call, partial.get(), num_chunks, longest);
  return residual;
}

}  // namespace
}  // namespace parasample

STABLE_TORCH_LIBRARY_FRAGMENT(parasample, m) {
  m.def(
      "picard_update(Tensor(a!) states, Tensor anchors, Tensor outputs, Tensor? noise, Tensor state_coef, "
      "Tensor anchor_coef, Tensor output_coef, Tensor noise_coef, Tensor x0_coef, Tensor residual_scale, "
      "Tensor begin, Tensor hold, Tensor end, Tensor? weights=None, Tensor? directions=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(parasample, CPU, m) {
  m.impl("picard_update", TORCH_BOX(&parasample::picard_update_cpu));
}
