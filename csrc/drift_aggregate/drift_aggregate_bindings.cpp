// The schema of drift_aggregate and its CPU implementation, against the LibTorch stable ABI.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "common/cpu_parallel.h"
#include "drift_aggregate/drift_aggregate_check.h"

namespace parasample {
namespace {

// With this many rows per thread, whole rows are handed out: a row is then still cached when it is read for
// the second time, and the last rows to finish keep the other threads waiting for a quarter of the time at
// most.
constexpr int64_t kRowsPerThread = 4;

double number(const DriftAggregate& call, const void* table, int64_t row) {
  return call.is_double ? static_cast<const double*>(table)[row] : static_cast<const float*>(table)[row];
}

bool is_rescaled(const DriftAggregate& call, int64_t row) {
  return call.rescale != nullptr && number(call, call.rescale, row) != 0;
}

// The factor that rescaling comes to, from the moments of the row's chunks.
double rescale_factor(const DriftAggregate& call, int64_t row, const DriftMoments* chunks,
                      int64_t num_chunks) {
  const auto size = [&](int64_t k) {
    return double(std::min(kDriftChunk, call.num_elements - k * kDriftChunk));
  };
  double mean_conditional = 0, mean_guided = 0;
  for (int64_t k = 0; k < num_chunks; ++k) {
    mean_conditional += size(k) * chunks[k].mean_conditional;
    mean_guided += size(k) * chunks[k].mean_guided;
  }
  mean_conditional /= double(call.num_elements);
  mean_guided /= double(call.num_elements);
  double squares_conditional = 0, squares_guided = 0;
  for (int64_t k = 0; k < num_chunks; ++k) {
    const double c = chunks[k].mean_conditional - mean_conditional, g = chunks[k].mean_guided - mean_guided;
    squares_conditional += chunks[k].squares_conditional + size(k) * c * c;
    squares_guided += chunks[k].squares_guided + size(k) * g * g;
  }
  // Both unbiased deviations divide by D - 1; a single element has neither, and 0 / 0 is NaN here too.
  const double ratio = std::sqrt(squares_conditional / squares_guided);
  const double phi = number(call, call.rescale, row);
  return phi * ratio + (1 - phi);
}

Tensor drift_aggregate_cpu(Tensor conditional, std::optional<Tensor> unconditional,
                           std::optional<Tensor> guidance, std::optional<Tensor> rescale,
                           std::optional<Tensor> states, std::optional<Tensor> conversion) {
  DriftAggregate call =
      check_drift_aggregate({conditional, unconditional, guidance, rescale, states, conversion});
  const int64_t n = call.num_rows, D = call.num_elements;
  Tensor result =
      torch::stable::new_empty(conditional, {n, D}, call.is_double ? ScalarType::Double : ScalarType::Float);
  if (n == 0 || D == 0) return result;
  call.result = result.data_ptr();
  const DriftMomentsKernel moments = select_drift_moments_cpu();
  const DriftConvertKernel convert = select_drift_convert_cpu();
  const int64_t num_chunks = (D + kDriftChunk - 1) / kDriftChunk;
  const int64_t chunk_elements = std::min(D, kDriftChunk);

  if (call.rescale != nullptr && n >= kRowsPerThread * int64_t(torch::stable::get_num_threads())) {
    run_parallel(n, 2 * D, [&](int64_t first, int64_t last) {
      const std::unique_ptr<DriftMoments[]> chunks(new DriftMoments[num_chunks]);
      for (int64_t row = first; row < last; ++row) {
        double factor = 1;
        if (is_rescaled(call, row)) {
          for (int64_t k = 0; k < num_chunks; ++k) moments(call, row, k, &chunks[k]);
          factor = rescale_factor(call, row, chunks.get(), num_chunks);
        }
        // From the end, where the moments left the cache warm.
        for (int64_t k = num_chunks; k-- > 0;) convert(call, row, k, factor);
      }
    });
    return result;
  }

  const std::unique_ptr<double[]> factors(new double[n]);
  for (int64_t row = 0; row < n; ++row) factors[row] = 1;
  if (call.rescale != nullptr) {
    const std::unique_ptr<DriftMoments[]> chunks(new DriftMoments[n * num_chunks]);
    run_parallel(n * num_chunks, chunk_elements, [&](int64_t first, int64_t last) {
      for (int64_t item = first; item < last; ++item) {
        if (is_rescaled(call, item / num_chunks)) {
          moments(call, item / num_chunks, item % num_chunks, &chunks[item]);
        }
      }
    });
    for (int64_t row = 0; row < n; ++row) {
      if (!is_rescaled(call, row)) continue;
      factors[row] = rescale_factor(call, row, &chunks[row * num_chunks], num_chunks);
    }
  }
  run_parallel(n * num_chunks, chunk_elements, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      convert(call, item / num_chunks, item % num_chunks, factors[item / num_chunks]);
    }
  });
  return result;
}

}  // namespace
}  // namespace parasample

STABLE_TORCH_LIBRARY_FRAGMENT(parasample, m) {
  m.def(
      "drift_aggregate(Tensor conditional, Tensor? unconditional, Tensor? guidance, Tensor? rescale, "
      "Tensor? states, Tensor? conversion) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(parasample, CPU, m) {
  m.impl("drift_aggregate", TORCH_BOX(&parasample::drift_aggregate_cpu));
}
