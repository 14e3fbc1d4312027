// Launches the CUDA kernel of picard_update. No torch header: the caller brings memory and a stream.
#include "picard_update/picard_update_kernels.cuh"

namespace parasample {
namespace {

// Every device gives a block 48 KiB unasked. Two to five blocks fit a multiprocessor, so that between 24 KiB, what
// hides the latency of memory at full bandwidth, and 100 KiB are in flight.
constexpr int kSharedBytes = 40 * 1024;

// Fills in the layout of shared memory; false where it leaves no room for two rows in flight.
bool lay_out(const PicardUpdate& call, CudaPlan& plan) {
  const int real_bytes = call.states.dtype == DType::kFloat64 ? 8 : 4;
  const auto row_of = [&](const Rows& rows, int count) {
    return rows.data == nullptr ? 0 : count * plan.threads * slot_bytes(rows.dtype, plan.width);
  };
  const auto aligned = [](int bytes) { return (bytes + 15) / 16 * 16; };
  plan.squares_at = aligned(kTilesInRing * kTile * coefs_per_row(call.history, call.rank) * real_bytes);
  plan.rows_at = aligned(plan.squares_at + kTile * squares_pitch(plan.threads) * real_bytes);
  plan.outputs_at = row_of(call.anchors, 1);
  plan.noise_at = plan.outputs_at + row_of(call.outputs, 1);
  plan.directions_at = plan.noise_at + row_of(call.noise, 1);
  plan.row_bytes = plan.directions_at + row_of(call.directions, call.rank);
  plan.depth = 0;
  for (int depth : {2, 3, 4, 6, 8, 12, kMaxDepth}) {  // those that wait_for_row knows
    if (plan.rows_at + depth * plan.row_bytes <= kSharedBytes) plan.depth = depth;
  }
  plan.shared_bytes = plan.rows_at + plan.depth * plan.row_bytes;
  return plan.depth > 0;
}

template <typename Real, int K>
void launch_width(const PicardUpdate& call, const CudaPlan& plan, Real* partial, int booklet, cudaStream_t stream) {
  const dim3 grid(unsigned(call.num_samples) * plan.blocks);
  if constexpr (sizeof(Real) == 4) {
    if (plan.width == 4) {
      picard_update<Real, K, 4><<<grid, plan.threads, plan.shared_bytes, stream>>>(call, plan, partial, booklet);
      return;
    }
  }
  picard_update<Real, K, 1><<<grid, plan.threads, plan.shared_bytes, stream>>>(call, plan, partial, booklet);
}

template <typename Real>
void launch(const PicardUpdate& call, const CudaPlan& plan, void* workspace, int booklet, cudaStream_t stream) {
  Real* partial = static_cast<Real*>(workspace);
  switch (call.history) {
    case 1: return launch_width<Real, 1>(call, plan, partial, booklet, stream);
    case 2: return launch_width<Real, 2>(call, plan, partial, booklet, stream);
    case 3: return launch_width<Real, 3>(call, plan, partial, booklet, stream);
    case 4: return launch_width<Real, 4>(call, plan, partial, booklet, stream);
    default: return launch_width<Real, 5>(call, plan, partial, booklet, stream);
  }
}

}  // namespace

CudaPlan plan_picard_update_cuda(const PicardUpdate& call, int64_t wide_from) {
  const int64_t elements = call.num_samples * call.num_elements;
  // float64 is as wide as a vector already, and its history in vectors would not fit the registers.
  const bool wide = call.states.dtype != DType::kFloat64 && elements >= wide_from && call.num_elements % 4 == 0 &&
                    call.stride_direction % 4 == 0 && aligned_for_vectors(call.states) &&
                    aligned_for_vectors(call.anchors) && aligned_for_vectors(call.outputs) &&
                    aligned_for_vectors(call.noise) && aligned_for_vectors(call.directions);
  const bool large = elements >= 8 * wide_from;  // fewer, larger blocks: the last one has fewer sums to add up
  struct Candidate {
    bool wanted;
    int width, threads;
  };
  CudaPlan plan{};
  for (const Candidate& candidate :
       {Candidate{wide && large, 4, kMaxThreads}, {wide, 4, 128}, {true, 1, 128}, {true, 1, 64}}) {
    plan.width = candidate.width;
    plan.threads = candidate.threads;
    if (candidate.wanted && lay_out(call, plan)) break;  // the last one fits any call
  }
  const int64_t per_block = int64_t(plan.width) * plan.threads;
  plan.blocks = call.num_elements > 0 ? uint32_t((call.num_elements + per_block - 1) / per_block) : 1;
  return plan;
}

const char* launch_picard_update_cuda(const PicardUpdate& call, const CudaPlan& plan, void* workspace, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  int booklet = 0;
  if (const char* error = booklet_of(on, &booklet)) return error;
  if (call.states.dtype == DType::kFloat64) {
    launch<double>(call, plan, workspace, booklet, on);
  } else {
    launch<float>(call, plan, workspace, booklet, on);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace parasample
