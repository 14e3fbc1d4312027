// Launches the CUDA kernels of drift_aggregate. No torch header: the caller brings memory and a stream.
#include "drift_aggregate/drift_aggregate_kernels.cuh"

namespace parasample {
namespace {

int chunks_per_row(const DriftAggregate& call) {
  return int((call.num_elements + kElements - 1) / kElements);
}

int parts_per_row(const DriftAggregate& call) {
  const int num_chunks = chunks_per_row(call);
  return num_chunks < kMaxParts ? num_chunks : int(kMaxParts);
}

template <typename Real>
void launch(const DriftAggregate& call, Moments<Real>* parts, cudaStream_t stream) {
  const int num_chunks = chunks_per_row(call), num_parts = parts_per_row(call);
  const dim3 chunks(unsigned(call.num_rows * num_chunks)), row_parts(unsigned(call.num_rows * num_parts));
  if (call.rescale == nullptr) {
    convert<Real, Rescale::kNone><<<chunks, kThreads, 0, stream>>>(call, parts, num_parts, num_chunks);
  } else if (num_chunks == 1) {
    convert<Real, Rescale::kWithinBlock><<<chunks, kThreads, 0, stream>>>(call, parts, num_parts, num_chunks);
  } else {
    part_moments<Real><<<row_parts, kThreads, 0, stream>>>(call, parts, num_parts);
    convert<Real, Rescale::kFromParts><<<chunks, kThreads, 0, stream>>>(call, parts, num_parts, num_chunks);
  }
}

}  // namespace

int64_t cuda_drift_workspace(const DriftAggregate& call) {
  if (call.rescale == nullptr || chunks_per_row(call) == 1) return 0;
  return call.num_rows * parts_per_row(call) * int64_t(sizeof(Moments<float>) / sizeof(float));
}

const char* launch_drift_aggregate_cuda(const DriftAggregate& call, void* workspace, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (call.is_double) {
    launch(call, static_cast<Moments<double>*>(workspace), on);
  } else {
    launch(call, static_cast<Moments<float>*>(workspace), on);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaError_t(0) ? nullptr : cudaGetErrorString(error);
}

}  // namespace parasample
