// Launches the CUDA kernels of picard_update. No torch header: the caller brings memory and a stream.
#include "picard_update/picard_update_kernels.cuh"

namespace parasample {
namespace {

template <typename Real>
int launch(const PicardUpdate& call, void* workspace, cudaStream_t stream) {
  Real* partial = static_cast<Real*>(workspace);
  const int64_t num_partials = cuda_num_partials(call);
  const dim3 grid(unsigned(num_partials / (kThreads / kWarp)), unsigned(call.num_samples));
  if (grid.x > 0) {
    switch (call.history) {
      case 1: scan<Real, 1><<<grid, kThreads, 0, stream>>>(call, partial, num_partials); break;
      case 2: scan<Real, 2><<<grid, kThreads, 0, stream>>>(call, partial, num_partials); break;
      case 3: scan<Real, 3><<<grid, kThreads, 0, stream>>>(call, partial, num_partials); break;
      case 4: scan<Real, 4><<<grid, kThreads, 0, stream>>>(call, partial, num_partials); break;
      default: scan<Real, 5><<<grid, kThreads, 0, stream>>>(call, partial, num_partials); break;
    }
  }
  const dim3 rows(unsigned(call.num_steps + 1), unsigned(call.num_samples));
  finish<Real><<<rows, kThreads, 0, stream>>>(call, partial, num_partials);
  return int(cudaGetLastError());
}

}  // namespace

int64_t cuda_num_partials(const PicardUpdate& call) {
  return (call.num_elements + kThreads - 1) / kThreads * (kThreads / kWarp);
}

int launch_picard_update_cuda(const PicardUpdate& call, void* workspace, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  return call.states.dtype == DType::kFloat64 ? launch<double>(call, workspace, on)
                                              : launch<float>(call, workspace, on);
}

const char* cuda_error_text(int error) { return cudaGetErrorString(cudaError_t(error)); }

}  // namespace parasample
