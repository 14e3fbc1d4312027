// Just enough of CUDA to run a kernel on the host: a block's threads are fibers that take turns, and change
// turns wherever the kernel synchronises. For tests of a kernel's logic where there is no GPU.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 threadIdx, blockIdx;

using cudaError_t = int;
using cudaStream_t = void*;
inline cudaError_t cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }

using std::max;
using std::min;
inline float __fdividef(float a, float b) { return a / b; }

namespace emulation {

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
inline void everyone_reaches_this() { swapcontext(&fibers[threadIdx.x].context, &scheduler); }

inline void launch(dim3 grid, unsigned threads, std::function<void()> kernel) {
  constexpr size_t stack_bytes = 1 << 16;
  body = kernel;
  fibers.resize(threads);
  for (unsigned block = 0; block < grid.x * grid.y; ++block) {
    blockIdx = dim3(block % grid.x, block / grid.x);
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
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::everyone_reaches_this(); }

template <typename T>
T __shfl_down_sync(unsigned, T value, int lanes) {
  static T slots[1024];
  const unsigned thread = threadIdx.x;
  slots[thread] = value;
  emulation::everyone_reaches_this();
  const T received = thread % 32 + lanes < 32 ? slots[thread + lanes] : value;
  emulation::everyone_reaches_this();
  return received;
}
