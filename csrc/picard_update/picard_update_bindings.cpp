// The schema of picard_update and its CPU implementation, against the LibTorch stable ABI: one binary for many torch
// versions.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <memory>

#include "picard_update/picard_update_check.h"

namespace parasample {
namespace {

// Scalar multiply-adds below which another thread costs more than it brings (a few microseconds of work).
constexpr int64_t kMinWorkPerThread = 32768;

// The longest range of the batch. Ranges are checked here because on the CPU they can be read for free.
int64_t check_ranges(const PicardUpdate& call) {
  int64_t longest = 0;
  for (int64_t b = 0; b < call.num_samples; ++b) {
    const int64_t begin = call.begin[b], hold = call.hold[b], end = call.end[b];
    if (end <= begin) continue;
    STD_TORCH_CHECK(begin >= 0 && end <= call.num_steps, "picard_update: sample ", b,
                    " must have 0 <= begin < end <= T = ", call.num_steps, ", found begin=", begin, " end=", end,
                    "; clip the window to the trajectory");
    STD_TORCH_CHECK(hold >= begin - 1, "picard_update: sample ", b, " must have hold >= begin - 1 = ", begin - 1,
                    ", found hold=", hold, "; rows before begin must have been evaluated");
    longest = end - begin > longest ? end - begin : longest;
    if (call.noise.data != nullptr || call.num_elements == 0) continue;
    for (int64_t i = begin; i < end; ++i) {
      const bool noisy = call.states.dtype == DType::kFloat64
                             ? static_cast<const double*>(call.noise_coef)[i] != 0
                             : static_cast<const float*>(call.noise_coef)[i] != 0;
      STD_TORCH_CHECK(!noisy, "picard_update: noise is None but noise_coef[", i,
                      "] is not zero; pass noise [T, B, D] or zero coefficients");
    }
  }
  return longest;
}

template <typename Real>
void write_residual(const PicardUpdate& call, const double* partial, int64_t num_chunks, int64_t longest) {
  Real* residual = static_cast<Real*>(call.residual);
  const Real* scale = static_cast<const Real*>(call.residual_scale);
  const int64_t B = call.num_samples;
  for (int64_t k = 0; k < (call.num_steps + 1) * B; ++k) residual[k] = std::numeric_limits<Real>::infinity();
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = call.begin[b]; i < call.end[b]; ++i) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
        sum += partial[(b * num_chunks + chunk) * longest + i - call.begin[b]];
      }
      residual[(i + 1) * B + b] = Real(double(scale[i + 1]) * sum);
    }
  }
}

Tensor picard_update_cpu(Tensor states, Tensor anchors, Tensor outputs, std::optional<Tensor> noise,
                         Tensor state_coef, Tensor anchor_coef, Tensor output_coef, Tensor noise_coef,
                         Tensor x0_coef, Tensor residual_scale, Tensor begin, Tensor hold, Tensor end,
                         std::optional<Tensor> weights, std::optional<Tensor> directions) {
  PicardUpdate call = check_picard_update({states, anchors, outputs, noise, state_coef, anchor_coef, output_coef,
                                           noise_coef, x0_coef, residual_scale, begin, hold, end, weights,
                                           directions});
  const int64_t longest = check_ranges(call);
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
  if (call.states.dtype == DType::kFloat64) {
    write_residual<double>(call, partial.get(), num_chunks, longest);
  } else {
    write_residual<float>(call, partial.get(), num_chunks, longest);
  }
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
