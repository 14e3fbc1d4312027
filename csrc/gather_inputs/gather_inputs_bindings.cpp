// The schema of gather_inputs and its CPU implementation, against the LibTorch stable ABI.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/cpu_parallel.h"
#include "gather_inputs/gather_inputs_check.h"

namespace parasample {
namespace {

Tensor gather_inputs_cpu(Tensor states, Tensor steps, Tensor samples, std::optional<Tensor> scale,
                         int64_t copies, ScalarType dtype) {
  GatherInputs call = check_gather_inputs(states, steps, samples, scale, copies, dtype);
  // On the CPU indices can be read for free.
  for (int64_t j = 0; j < call.num_items; ++j) {
    STD_TORCH_CHECK(call.steps[j] >= 0 && call.steps[j] < call.num_steps,
                    "gather_inputs: steps must have values 0 .. ", call.num_steps - 1, ", found ",
                    call.steps[j], "; clip it to the trajectory");
    STD_TORCH_CHECK(call.samples[j] >= 0 && call.samples[j] < call.num_samples,
                    "gather_inputs: samples must have values 0 .. ", call.num_samples - 1, ", found ",
                    call.samples[j], "; clip it to the trajectory");
  }
  Tensor result = torch::stable::new_empty(states, {copies * call.num_items, call.num_elements}, dtype);
  const int64_t num_chunks = (call.num_elements + kGatherChunk - 1) / kGatherChunk;
  const int64_t num_items = call.num_items * num_chunks;
  if (num_items == 0) return result;
  call.result.data = result.data_ptr();
  const GatherKernel kernel = select_gather_inputs_cpu();
  run_parallel(num_items, std::min(call.num_elements, kGatherChunk), [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) kernel(call, item / num_chunks, item % num_chunks);
  });
  return result;
}

}  // namespace
}  // namespace parasample

STABLE_TORCH_LIBRARY_FRAGMENT(parasample, m) {
  m.def(
      "gather_inputs(Tensor states, Tensor steps, Tensor samples, Tensor? scale, int copies, "
      "ScalarType dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(parasample, CPU, m) {
  m.impl("gather_inputs", TORCH_BOX(&parasample::gather_inputs_cpu));
}
