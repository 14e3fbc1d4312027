// The schema of gather_inputs and its CPU implementation, against the LibTorch stable ABI.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "gather_inputs/gather_inputs_check.h"

namespace parasample {
namespace {

// Elements below which another thread costs more than it brings (a few microseconds of work).
constexpr int64_t kMinElementsPerThread = 32768;

Tensor gather_inputs_cpu(Tensor states, Tensor steps, Tensor samples, std::optional<Tensor> scale, int64_t copies,
                         ScalarType dtype) {
  GatherInputs call = check_gather_inputs(states, steps, samples, scale, copies, dtype);
  // On the CPU indices can be read for free.
  for (int64_t j = 0; j < call.num_items; ++j) {
    STD_TORCH_CHECK(call.steps[j] >= 0 && call.steps[j] < call.num_steps, "gather_inputs: steps must have values 0 .. ",
                    call.num_steps - 1, ", found ", call.steps[j], "; clip it to the trajectory");
    STD_TORCH_CHECK(call.samples[j] >= 0 && call.samples[j] < call.num_samples,
                    "gather_inputs: samples must have values 0 .. ", call.num_samples - 1, ", found ", call.samples[j],
                    "; clip it to the trajectory");
  }
  Tensor result = torch::stable::new_empty(states, {copies * call.num_items, call.num_elements}, dtype);
  const int64_t num_chunks = (call.num_elements + kGatherChunk - 1) / kGatherChunk;
  const int64_t num_items = call.num_items * num_chunks;
  if (num_items == 0) return result;
  call.result.data = result.data_ptr();
  const GatherKernel kernel = select_gather_inputs_cpu();
  const auto run = [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) kernel(call, item / num_chunks, item % num_chunks);
  };
  const int64_t grain = kMinElementsPerThread / std::min(call.num_elements, kGatherChunk) + 1;
  if (grain >= num_items) {
    run(0, num_items);
  } else {
    torch::stable::parallel_for(0, num_items, grain, run);
  }
  return result;
}

}  // namespace
}  // namespace parasample

STABLE_TORCH_LIBRARY_FRAGMENT(parasample, m) {
  m.def(
      "gather_inputs(Tensor states, Tensor steps, Tensor samples, Tensor? scale, int copies, ScalarType dtype) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(parasample, CPU, m) {
  m.impl("gather_inputs", TORCH_BOX(&parasample::gather_inputs_cpu));
}
