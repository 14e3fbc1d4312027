// The schema of dense_update and its CPU implementation, against the LibTorch stable ABI.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <memory>

#include "common/cpu_parallel.h"
#include "dense_update/dense_update.h"
#include "picard_update/picard_update_check.h"

namespace parasample {
namespace {

constexpr int64_t kAnyHistory = std::numeric_limits<int32_t>::max();

Tensor dense_update_cpu(Tensor states, Tensor anchors, Tensor outputs, std::optional<Tensor> noise, Tensor state_coef,
                        Tensor anchor_coef, Tensor output_coef, Tensor noise_coef, Tensor x0_coef,
                        Tensor residual_scale, Tensor begin, Tensor hold, Tensor end) {
  PicardUpdate call = check_picard_update({states, anchors, outputs, noise, state_coef, anchor_coef, output_coef,
                                           noise_coef, x0_coef, residual_scale, begin, hold, end, {}, {}},
                                          "dense_update", kAnyHistory);
  const int64_t longest = check_ranges(call, "dense_update");
  Tensor residual = torch::stable::new_empty(residual_scale, {call.num_steps + 1, call.num_samples});
  call.residual = residual.data_ptr();

  const int64_t num_chunks = (call.num_elements + kDenseChunk - 1) / kDenseChunk;
  const int64_t num_items = longest > 0 ? call.num_samples * num_chunks : 0;
  const std::unique_ptr<double[]> partial(new double[num_items * longest]);
  if (num_items > 0) {
    const DenseKernel kernel = select_dense_update_cpu();
    const int64_t work = longest * call.history * 3 * (num_chunks == 1 ? call.num_elements : kDenseChunk);
    run_parallel(num_items, work, [&](int64_t first, int64_t last) {
      const std::unique_ptr<double[]> workspace(new double[dense_workspace(call, longest)]);
      for (int64_t item = first; item < last; ++item) {
        kernel(call, item / num_chunks, item % num_chunks, workspace.get(), partial.get() + item * longest);
      }
    });
  }
  write_residual(call, partial.get(), num_chunks, longest);
  return residual;
}

}  // namespace
}  // namespace parasample

STABLE_TORCH_LIBRARY_FRAGMENT(parasample, m) {
  m.def(
      "dense_update(Tensor(a!) states, Tensor anchors, Tensor outputs, Tensor? noise, Tensor state_coef, "
      "Tensor anchor_coef, Tensor output_coef, Tensor noise_coef, Tensor x0_coef, Tensor residual_scale, "
      "Tensor begin, Tensor hold, Tensor end) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(parasample, CPU, m) {
  m.impl("dense_update", TORCH_BOX(&parasample::dense_update_cpu));
}
