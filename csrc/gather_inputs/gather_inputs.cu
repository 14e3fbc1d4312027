// The CUDA kernel of gather_inputs and its launch. No torch header: the caller brings memory and a stream.
#include "common/cuda_convert.cuh"
#include "gather_inputs/gather_inputs.h"

namespace parasample {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;                         // loads in flight, to hide the latency of memory
constexpr int64_t kElements = kThreads * kPerThread;  // of a block

__device__ __forceinline__ int64_t clipped(int64_t value, int64_t size) {
  return max(int64_t(0), min(value, size - 1));
}

// Block (item, chunk) reads its elements once and writes every copy. Indices are clipped, because they cannot
// be checked without waiting for the device.
template <typename Real>
__global__ void __launch_bounds__(kThreads) gather(GatherInputs call, int num_chunks) {
  const int64_t item = blockIdx.x / num_chunks;
  const int64_t at = int64_t(blockIdx.x % num_chunks) * kElements + threadIdx.x;
  const int64_t step = clipped(call.steps[item], call.num_steps);
  const int64_t sample = clipped(call.samples[item], call.num_samples);
  const Real scale = call.scale != nullptr ? static_cast<const Real*>(call.scale)[step] : Real(1);
  Real values[kPerThread];
  load_elements<kThreads>(values, call.states.data, call.states.dtype,
                          step * call.states.stride_row + sample * call.states.stride_sample, at,
                          call.num_elements);
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) values[k] *= scale;
  for (int64_t copy = 0; copy < call.copies; ++copy) {
    store_elements<kThreads>(call.result.data, call.result.dtype,
                             (copy * call.num_items + item) * call.num_elements, at, call.num_elements,
                             values);
  }
}

}  // namespace

const char* launch_gather_inputs_cuda(const GatherInputs& call, void* on) {
  const cudaStream_t stream = static_cast<cudaStream_t>(on);
  const int num_chunks = int((call.num_elements + kElements - 1) / kElements);
  const dim3 blocks(unsigned(call.num_items * num_chunks));
  if (call.states.dtype == DType::kFloat64) {
    gather<double><<<blocks, kThreads, 0, stream>>>(call, num_chunks);
  } else {
    gather<float><<<blocks, kThreads, 0, stream>>>(call, num_chunks);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaError_t(0) ? nullptr : cudaGetErrorString(error);
}

}  // namespace parasample
