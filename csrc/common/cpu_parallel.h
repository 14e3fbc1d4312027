// Work items spread over torch's threads, for CPU implementations.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace parasample {

// Elements below which another thread costs more than it brings (a few microseconds of work).
constexpr int64_t kMinElementsPerThread = 32768;

// Calls run(first, last) on ranges that make up 0 .. num_items - 1.
template <typename Run>
void run_parallel(int64_t num_items, int64_t elements_per_item, const Run& run) {
  const int64_t grain = kMinElementsPerThread / elements_per_item + 1;
  if (grain >= num_items) {
    run(0, num_items);
  } else {
    torch::stable::parallel_for(0, num_items, grain, run);
  }
}

}  // namespace parasample
