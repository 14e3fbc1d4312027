// The CUDA kernels of drift_aggregate, from raw pointers. A block converts a chunk of one row, read once into
// registers. Rescaling needs deviations of the whole row: a row of one chunk finds them on the way; of a
// longer one, blocks first write the moments of its parts, whose second reading the second-level cache mostly
// serves. Sums run in a fixed order.
#pragma once

#include "common/cuda_convert.cuh"
#include "drift_aggregate/drift_aggregate.h"

namespace parasample {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;  // loads of each tensor in flight, to hide the latency of memory
constexpr int kWarp = 32;
constexpr int64_t kElements = kThreads * kPerThread;  // of a chunk

// Parts per row whose moments are written; few enough that every block of the row can afford to add them up.
constexpr int64_t kMaxParts = 64;

enum class Rescale { kNone, kWithinBlock, kFromParts };

// DriftMoments in the computed type.
template <typename Real>
struct Moments {
  Real mean_conditional, squares_conditional, mean_guided, squares_guided;
};

template <typename Real>
__device__ __forceinline__ Real number(const void* table, int64_t at) {
  return static_cast<const Real*>(table)[at];
}

// Sums a and b over the block; every thread gets the same bits.
template <typename Real>
__device__ __forceinline__ void block_sum(Real& a, Real& b) {
  __shared__ Real sums[2][kThreads / kWarp];
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    a += __shfl_down_sync(~0u, a, lanes);
    b += __shfl_down_sync(~0u, b, lanes);
  }
  if (threadIdx.x % kWarp == 0) sums[0][threadIdx.x / kWarp] = a, sums[1][threadIdx.x / kWarp] = b;
  __syncthreads();
  a = b = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / kWarp; ++warp) a += sums[0][warp], b += sums[1][warp];
  __syncthreads();  // the next call overwrites the sums
}

// One chunk of a row: this thread's elements are at, at + kThreads, .. before `end`.
template <typename Real>
struct Chunk {
  int64_t row, at, end, count;
  Real conditional[kPerThread], m[kPerThread];

  __device__ __forceinline__ Chunk(const DriftAggregate& call, int64_t row_index, int64_t chunk)
      : row(row_index),
        at(chunk * kElements + threadIdx.x),
        end(call.num_elements),
        count(min(kElements, call.num_elements - chunk * kElements)) {
    read(call.conditional, conditional);
    if (call.unconditional.data == nullptr) {
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) m[k] = conditional[k];
      return;
    }
    read(call.unconditional, m);
    const Real guidance = number<Real>(call.guidance, row);
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) m[k] += guidance * (conditional[k] - m[k]);
  }

  __device__ __forceinline__ void read(const Rows& rows, Real (&to)[kPerThread]) const {
    load_elements<kThreads>(to, rows.data, rows.dtype, row * rows.stride_row, at, end);
  }

  // Over the block's elements.
  __device__ __forceinline__ Moments<Real> moments(const DriftAggregate& call) const {
    Real first_conditional[1], first[1];
    load_elements<1>(first_conditional, call.conditional.data, call.conditional.dtype,
                     row * call.conditional.stride_row, 0, 1);
    load_elements<1>(first, call.unconditional.data, call.unconditional.dtype,
                     row * call.unconditional.stride_row, 0, 1);
    const Real origin = first_conditional[0];
    const Real origin_guided = first[0] + number<Real>(call.guidance, row) * (origin - first[0]);
    Moments<Real> found{};
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      if (at + k * kThreads >= end) continue;
      found.mean_conditional += conditional[k] - origin;
      found.mean_guided += m[k] - origin_guided;
    }
    block_sum(found.mean_conditional, found.mean_guided);
    found.mean_conditional /= Real(count);
    found.mean_guided /= Real(count);
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      if (at + k * kThreads >= end) continue;
      const Real c = conditional[k] - origin - found.mean_conditional;
      const Real g = m[k] - origin_guided - found.mean_guided;
      found.squares_conditional += c * c;
      found.squares_guided += g * g;
    }
    block_sum(found.squares_conditional, found.squares_guided);
    return found;
  }
};

// Block (row, part) writes the moments of chunks part, part + num_parts, .. of its row.
template <typename Real>
__global__ void __launch_bounds__(kThreads)
    part_moments(DriftAggregate call, Moments<Real>* to, int num_parts) {
  const int64_t row = blockIdx.x / num_parts;
  if (number<Real>(call.rescale, row) == Real(0)) return;
  const int64_t num_chunks = (call.num_elements + kElements - 1) / kElements;
  Moments<Real> total{};
  Real size = 0;
  for (int64_t chunk = blockIdx.x % num_parts; chunk < num_chunks; chunk += num_parts) {
    const Chunk<Real> here(call, row, chunk);
    const Moments<Real> found = here.moments(call);
    // Chan, Golub and LeVeque: the deviations of a union from those of its two parts.
    const Real share = Real(here.count) / (size + Real(here.count));
    const Real c = found.mean_conditional - total.mean_conditional;
    const Real g = found.mean_guided - total.mean_guided;
    total.mean_conditional += share * c;
    total.mean_guided += share * g;
    total.squares_conditional += found.squares_conditional + share * size * c * c;
    total.squares_guided += found.squares_guided + share * size * g * g;
    size += Real(here.count);
  }
  if (threadIdx.x == 0) to[blockIdx.x] = total;
}

// The moments of a row from those of its parts.
template <typename Real>
__device__ __forceinline__ Moments<Real> row_moments(const DriftAggregate& call, const Moments<Real>* parts,
                                                     int num_parts) {
  const int64_t part = threadIdx.x;
  const int64_t num_chunks = (call.num_elements + kElements - 1) / kElements;
  Moments<Real> mine{}, row{};
  Real size = 0;
  if (part < num_parts) {
    mine = parts[part];
    const int64_t missing =
        (num_chunks - 1) % num_parts == part ? num_chunks * kElements - call.num_elements : 0;
    size = Real((num_chunks - part + num_parts - 1) / num_parts * kElements - missing);
    row.mean_conditional = size * mine.mean_conditional;
    row.mean_guided = size * mine.mean_guided;
  }
  block_sum(row.mean_conditional, row.mean_guided);
  row.mean_conditional /= Real(call.num_elements);
  row.mean_guided /= Real(call.num_elements);
  if (part < num_parts) {
    const Real c = mine.mean_conditional - row.mean_conditional, g = mine.mean_guided - row.mean_guided;
    row.squares_conditional = mine.squares_conditional + size * c * c;
    row.squares_guided = mine.squares_guided + size * g * g;
  }
  block_sum(row.squares_conditional, row.squares_guided);
  return row;
}

// Block (row, chunk) writes its chunk of the result.
template <typename Real, Rescale kRescale>
__global__ void __launch_bounds__(kThreads)
    convert(DriftAggregate call, const Moments<Real>* parts, int num_parts, int num_chunks) {
  const int64_t row = blockIdx.x / num_chunks;
  Chunk<Real> chunk(call, row, blockIdx.x % num_chunks);
  Real x[kPerThread] = {};
  if (call.states.data != nullptr) chunk.read(call.states, x);  // in flight while sums are taken

  if (kRescale != Rescale::kNone) {
    const Real phi = number<Real>(call.rescale, row);
    if (phi != Real(0)) {  // the same for the whole block
      const Moments<Real> moments = kRescale == Rescale::kWithinBlock
                                        ? chunk.moments(call)
                                        : row_moments(call, parts + row * num_parts, num_parts);
      // D - 1 cancels; for D = 1 this is 0 / 0, NaN as it should be.
      const Real ratio = sqrt(moments.squares_conditional / moments.squares_guided);
      const Real factor = phi * ratio + (1 - phi);
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) chunk.m[k] *= factor;
    }
  }

  if (call.states.data != nullptr) {
    Real coef[kConversion];
#pragma unroll
    for (int c = 0; c < kConversion; ++c) coef[c] = number<Real>(call.conversion, kConversion * row + c);
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const Real data = coef[kInState] * x[k] + coef[kInOutput] * chunk.m[k];
      Real clipped = data < coef[kLow] ? coef[kLow] : data;  // comparisons with NaN are false: NaN stays
      clipped = clipped > coef[kHigh] ? coef[kHigh] : clipped;
      chunk.m[k] = coef[kOutState] * x[k] + coef[kOutData] * clipped;
      if (coef[kOutCut] != Real(0)) chunk.m[k] += coef[kOutCut] * (data - clipped);  // the same for the block
    }
  }
  store_typed<kThreads>(static_cast<Real*>(call.result) + row * call.num_elements, chunk.at, chunk.end,
                        chunk.m);
}

}  // namespace
}  // namespace parasample
