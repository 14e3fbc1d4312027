// Stands in for csrc/common/cuda_async.cuh: copies are made as late as the waiting allows, and what they will
// overwrite is spoiled at once, so that a kernel that reads too early finds NaN.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <deque>
#include <vector>

namespace emulation {

struct Copy {
  void* to;
  const void* from;
  int bytes;
};
// Per thread: groups that still run, oldest first, and the group that is not ended yet.
inline std::deque<std::vector<Copy>> running[1024];
inline std::vector<Copy> open_group[1024];

inline const bool forgets_copies = [] {
  after_block = [] {
    for (auto& groups : running) groups.clear();
    for (auto& group : open_group) group.clear();
  };
  return true;
}();

}  // namespace emulation

namespace parasample {
namespace {

template <int kBytes>
void copy_async(void* shared, const void* global) {
  const auto misaligned = [](const void* at) { return reinterpret_cast<uint64_t>(at) % kBytes != 0; };
  if (misaligned(shared) || misaligned(global)) emulation::fail("a copy is not aligned");
  emulation::check_shared(shared, kBytes);
  std::memset(shared, 0xff, kBytes);
  emulation::open_group[threadIdx.x].push_back({shared, global, kBytes});
}

inline void end_group() {
  emulation::running[threadIdx.x].push_back(std::move(emulation::open_group[threadIdx.x]));
  emulation::open_group[threadIdx.x].clear();
}

template <int kRunning>
void wait_for_groups() {
  auto& groups = emulation::running[threadIdx.x];
  for (; groups.size() > kRunning; groups.pop_front()) {
    for (const emulation::Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
  }
}

}  // namespace
}  // namespace parasample
