// Copies from global to shared memory that run behind the thread that asked for them (cp.async, sm_80 and later).
// A thread sees its own copies after waiting, other threads' only after a barrier besides. The toolkit's
// cuda_pipeline.h offers the same, but tells the compiler nothing of the memory touched and waits for at most 8.
#pragma once

#include <cuda_runtime.h>

namespace parasample {
namespace {

// 4, 8 or 16 bytes, aligned to their number on both sides.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  const unsigned to = unsigned(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {  // past the first-level cache: every byte is read once
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes) : "memory");
  }
}

// Ends a group: the copies asked for since the last one.
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kRunning groups of this thread still run; groups finish in order.
template <int kRunning>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kRunning) : "memory");
}

}  // namespace
}  // namespace parasample
