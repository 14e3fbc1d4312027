// "Am I the last block?" without clearing a counter before each launch. Included by one .cu file per op.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <tuple>

namespace parasample {
namespace {

constexpr int kTickets = 32;    // counters of a launch; a batch of more samples shares them
constexpr int kBooklets = 4096;  // 512 KiB of counters on each device

// Zero when the module is loaded, and again after each launch: the last of the blocks to take a ticket resets its
// counter. So launches may share a booklet as long as they never run at the same time, see `booklet_of`.
__device__ unsigned ticket_counters[kBooklets * kTickets];

// Called by all threads of a block, the same way; true in the last of `num_blocks` to come here. It sees what
// the threads of the others wrote before they came.
__device__ __forceinline__ bool last_block(int counter, unsigned num_blocks, bool* shared_flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // with the barrier before it: the writes of the whole block are out
    *shared_flag = atomicInc(&ticket_counters[counter], num_blocks - 1) == num_blocks - 1;
    __threadfence();
  }
  __syncthreads();
  return *shared_flag;
}

// The booklet for a launch on `stream`: one per device and stream, and per stream of a captured graph. Two
// launches that share one are ordered: eager launches by their stream, launches within a graph by the stream that
// was captured, and replays of a graph by CUDA, which runs an executable graph once at a time. Eager launches
// and graphs may run side by side, for their booklets differ. (A graph instantiated twice would break this; torch
// instantiates each once.) Ids, not handles: a handle is used again after its stream is destroyed.
// Returns an error in words, or null.
inline const char* booklet_of(cudaStream_t stream, int* booklet) {
  int device = 0;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0, capture = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaStreamGetCaptureInfo(stream, &status, &capture);
  if (error == cudaSuccess) error = cudaStreamGetId(stream, &id);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const unsigned long long graph = status == cudaStreamCaptureStatusNone ? 0 : capture + 1;

  static std::mutex mutex;
  static std::map<std::tuple<int, unsigned long long, unsigned long long>, int> booklets;
  const std::lock_guard<std::mutex> lock(mutex);
  *booklet = booklets.emplace(std::make_tuple(device, id, graph), int(booklets.size())).first->second;
  // Old ones are not handed out again: that could be wrong in silence.
  if (*booklet < kBooklets) return nullptr;
  return "this process has captured it in thousands of CUDA graphs; keep and replay graphs instead";
}

}  // namespace
}  // namespace parasample
