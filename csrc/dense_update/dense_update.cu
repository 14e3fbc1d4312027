// The CUDA kernels of dense_update and their launches. No torch header: the caller brings memory and a stream.
//
// A thread owns one element of one sample and solves its rows in tiles: what a tile takes from rows before it is a
// product of a tile of coefficients with values that are read once per tile, what it takes from itself follows row
// by row. Unrounded new states go to a workspace first, so that anchors may be the memory of states.
#include <cuda_runtime.h>

#include "common/cuda_convert.cuh"
#include "common/cuda_divide.cuh"
#include "dense_update/dense_update.h"

namespace parasample {
namespace {

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr int kTileRows = 8;  // rows per read of a value; their sums stay in registers

uint32_t blocks_of(const PicardUpdate& call) {
  return call.num_elements > 0 ? uint32_t((call.num_elements + kThreads - 1) / kThreads) : 1;
}

// Ranges cannot be checked without waiting for the device; clipping keeps every access inside the tensors.
struct Range {
  int begin, hold, end;
  __device__ Range(const PicardUpdate& call, int sample) {
    const auto clipped = [&](int64_t row, int least) { return int(min(max(row, int64_t(least)), call.num_steps)); };
    begin = clipped(call.begin[sample], 0);
    end = clipped(call.end[sample], 0);
    hold = min(clipped(call.hold[sample], begin - 1), end - 1);
  }
};

template <typename Real>
struct Triangle {
  const PicardUpdate& call;
  const Range range;
  const int sample;
  const int64_t element;
  Real* const solved;  // [T+1, B, D], new states before they are rounded

  __device__ Triangle(const PicardUpdate& c, int sample_index, int64_t of_sample, Real* workspace)
      : call(c), range(c, sample_index), sample(sample_index), element(of_sample), solved(workspace) {}

  __device__ static const Real* table(const void* data) { return static_cast<const Real*>(data); }
  __device__ Real load(const Rows& rows, int row) const {
    Real value[1];
    load_elements<1>(value, rows.data, rows.dtype, row * rows.stride_row + sample * rows.stride_sample, element,
                     call.num_elements);
    return value[0];
  }
  __device__ Real& new_state(int row) const {
    return solved[(int64_t(row) * call.num_samples + sample) * call.num_elements + element];
  }
  __device__ Real held_x0() const {
    if (range.hold < 0) return Real(0);
    const Real* coef = table(call.x0_coef) + 2 * range.hold;
    return coef[0] * load(call.anchors, range.hold) + coef[1] * load(call.outputs, range.hold);
  }

  // Adds what rows `tile` + from .. of the tile take from row `source`, whose state is x.
  __device__ void take(Real (&sums)[kTileRows], int tile, int from, int source, Real x, Real held) const {
    Real xa = x, m;
    if (source <= range.hold) {
      xa = load(call.anchors, source);
      m = load(call.outputs, source);
    } else {
      const Real* coef = table(call.x0_coef) + 2 * source;
      m = (held - coef[0] * x) * inverse(coef[1]);
    }
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const int row = tile + r, lag = row - source;
      if (r < from || row >= range.end || lag >= call.history) continue;
      const int64_t at = int64_t(row) * call.history + lag;
      add(sums[r], table(call.state_coef)[at], x);
      add(sums[r], table(call.anchor_coef)[at], xa);
      add(sums[r], table(call.output_coef)[at], m);
    }
  }
  // A term whose coefficient is zero is left out, whatever its value.
  __device__ static void add(Real& sum, Real coef, Real value) {
    if (coef != Real(0)) sum += coef * value;
  }

  __device__ void solve() const {
    const Real held = held_x0();
    for (int tile = range.begin; tile < range.end; tile += kTileRows) {
      Real sums[kTileRows] = {};
      for (int source = max(0, tile - call.history + 1); source <= tile; ++source) {
        take(sums, tile, 0, source, source <= range.begin ? load(call.states, source) : new_state(source), held);
      }
#pragma unroll
      for (int r = 0; r < kTileRows; ++r) {
        const int row = tile + r;
        if (row >= range.end) break;
        const Real noise_coef = table(call.noise_coef)[row];
        if (noise_coef != Real(0) && call.noise.data != nullptr) sums[r] += noise_coef * load(call.noise, row);
        new_state(row + 1) = sums[r];
        if (r + 1 < kTileRows && row + 1 < range.end) take(sums, tile, r + 1, row + 1, sums[r], held);
      }
    }
  }

  // Rounds and stores a row; its squared change.
  __device__ Real store(int row) const {
    const Real old = load(call.anchors, row);
    const Real value[1] = {new_state(row)};
    store_elements<1>(call.states.data, call.states.dtype,
                      row * call.states.stride_row + sample * call.states.stride_sample, element, call.num_elements,
                      value);
    const Real change = load(call.states, row) - old;
    return change * change;
  }
};

// Sums of squared changes of each block go to partial [B, T+1, blocks]. Three blocks a multiprocessor: without a
// number the compiler aims at more, and spills for them.
template <typename Real>
__global__ void __launch_bounds__(kThreads, 3)
    dense_update(const __grid_constant__ PicardUpdate call, Real* workspace, Real* partial, unsigned blocks) {
  __shared__ Real of_warps[kThreads / kWarp];
  const int sample = blockIdx.x / blocks, block = blockIdx.x % blocks;
  const int64_t element = int64_t(block) * kThreads + threadIdx.x;
  const Triangle<Real> triangle(call, sample, element, workspace);
  const bool active = element < call.num_elements;
  if (active) triangle.solve();
  for (int row = triangle.range.begin + 1; row <= triangle.range.end; ++row) {
    Real squared = active ? triangle.store(row) : Real(0);
    for (int half = kWarp / 2; half > 0; half /= 2) squared += __shfl_down_sync(~0u, squared, half);
    if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = squared;
    __syncthreads();
    if (threadIdx.x == 0) {
      Real sum = 0;
      for (int warp = 0; warp < kThreads / kWarp; ++warp) sum += of_warps[warp];
      partial[(int64_t(sample) * (call.num_steps + 1) + row) * blocks + block] = sum;
    }
    __syncthreads();
  }
}

// A thread adds up a row of a sample, in a fixed order.
template <typename Real>
__global__ void __launch_bounds__(kThreads) dense_residual(const __grid_constant__ PicardUpdate call,
                                                           const Real* partial, unsigned blocks) {
  const int64_t rows = call.num_steps + 1;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= rows * call.num_samples) return;
  const int sample = int(index % call.num_samples), row = int(index / call.num_samples);
  const Range range(call, sample);
  Real sum = 0;
  const bool inside = row > range.begin && row <= range.end;
  for (unsigned n = 0; inside && n < blocks; ++n) sum += partial[(sample * rows + row) * blocks + n];
  static_cast<Real*>(call.residual)[index] =
      inside ? static_cast<const Real*>(call.residual_scale)[row] * sum : Real(INFINITY);
}

template <typename Real>
void launch(const PicardUpdate& call, void* memory, cudaStream_t stream) {
  const unsigned blocks = blocks_of(call);
  Real* workspace = static_cast<Real*>(memory);
  const int64_t rows = (call.num_steps + 1) * call.num_samples;
  Real* partial = workspace + rows * call.num_elements;
  const dim3 grid(unsigned(call.num_samples) * blocks), row_grid(unsigned((rows + kThreads - 1) / kThreads));
  const int none = 0;
  dense_update<Real><<<grid, kThreads, none, stream>>>(call, workspace, partial, blocks);
  dense_residual<Real><<<row_grid, kThreads, none, stream>>>(call, partial, blocks);
}

}  // namespace

int64_t dense_workspace_cuda(const PicardUpdate& call) {
  return (call.num_steps + 1) * call.num_samples * (call.num_elements + blocks_of(call));
}

const char* launch_dense_update_cuda(const PicardUpdate& call, void* workspace, void* on) {
  const cudaStream_t stream = static_cast<cudaStream_t>(on);
  if (call.states.dtype == DType::kFloat64) {
    launch<double>(call, workspace, stream);
  } else {
    launch<float>(call, workspace, stream);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace parasample
