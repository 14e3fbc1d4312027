// Just enough of CUDA to run a kernel on the host: a block's threads are fibers that take turns, and change
// turns wherever the kernel synchronises; blocks run one after another. For tests of a kernel's logic where there
// is no GPU.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ thread_local  // one for all fibers; blocks run one after another

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 threadIdx, blockIdx;

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::max;
using std::min;
inline float __fdividef(float a, float b) { return a / b; }
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// ---- host calls: one device, and streams told apart by their handles ----------------------------------------

enum cudaError_t { cudaSuccess };
using cudaStream_t = void*;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  return *id = reinterpret_cast<uint64_t>(stream), cudaSuccess;
}
inline cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long*) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}

// ---- dynamic shared memory -------------------------------------------------------------------------------------

namespace parasample {
constexpr size_t kSharedLimit = 48 * 1024;  // what every device gives unasked
inline thread_local uint4 dynamic_shared[kSharedLimit / sizeof(uint4) + 1];  // and a guard
}  // namespace parasample

namespace emulation {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

inline size_t shared_bytes;  // of the running launch
inline void check_shared(const void* at, size_t bytes) {
  const auto offset = static_cast<const char*>(at) - reinterpret_cast<const char*>(parasample::dynamic_shared);
  if (offset < 0 || offset + bytes > shared_bytes) fail("a copy leaves the shared memory of its block");
}

// ---- fibers -------------------------------------------------------------------------------------------------

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done;
};
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline std::function<void()> body;

inline void enter() {
  body();
  fibers[threadIdx.x].done = true;
}

// Threads that have come to the barrier of their block or warp; the last one to come opens it.
struct Barrier {
  unsigned waiting = 0, times_open = 0;
  void wait(unsigned threads) {
    const unsigned before = times_open;
    if (++waiting == threads) {
      waiting = 0;
      ++times_open;
    }
    while (times_open == before) swapcontext(&fibers[threadIdx.x].context, &scheduler);
  }
};
inline Barrier block_barrier, warp_barriers[32];

inline void (*after_block)() = [] {};

inline void launch(dim3 grid, unsigned threads, size_t bytes, std::function<void()> kernel) {
  constexpr size_t stack_bytes = 1 << 16;
  constexpr uint64_t guard = 0x6b6e756a6b6e756a;
  if (bytes > parasample::kSharedLimit) fail("a block asks for more shared memory than there is");
  shared_bytes = bytes;
  body = kernel;
  fibers.resize(threads);
  for (unsigned block = 0; block < grid.x; ++block) {
    blockIdx = dim3(block);
    char* shared = reinterpret_cast<char*>(parasample::dynamic_shared);
    std::memset(shared, 0xff, bytes);  // NaN
    std::memcpy(shared + bytes, &guard, sizeof(guard));
    for (Fiber& fiber : fibers) {
      fiber.done = false;
      if (!fiber.stack) fiber.stack.reset(new char[stack_bytes]);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = stack_bytes;
      fiber.context.uc_link = &scheduler;
      makecontext(&fiber.context, enter, 0);
    }
    for (bool running = true; running;) {
      running = false;
      for (unsigned thread = 0; thread < threads; ++thread) {
        if (fibers[thread].done) continue;
        running = true;
        threadIdx = dim3(thread);
        swapcontext(&scheduler, &fibers[thread].context);
      }
    }
    if (std::memcmp(shared + bytes, &guard, sizeof(guard))) fail("a block wrote beyond its shared memory");
    after_block();
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::block_barrier.wait(unsigned(emulation::fibers.size())); }
inline void __threadfence() {}
inline unsigned atomicInc(unsigned* counter, unsigned limit) {
  const unsigned before = *counter;
  *counter = before >= limit ? 0 : before + 1;
  return before;
}

template <typename T>
T __shfl_down_sync(unsigned, T value, int lanes) {
  static T slots[1024];
  const unsigned thread = threadIdx.x;
  slots[thread] = value;
  emulation::warp_barriers[thread / 32].wait(32);
  const T received = thread % 32 + lanes < 32 ? slots[thread + lanes] : value;
  emulation::warp_barriers[thread / 32].wait(32);
  return received;
}
