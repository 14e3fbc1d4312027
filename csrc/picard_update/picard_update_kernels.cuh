// The CUDA kernel of picard_update, from raw pointers: one launch per update. A thread owns kWidth neighbouring
// elements of one sample and walks its rows with the history in registers. Rows are copied into shared memory
// `plan.depth` rows ahead of the recurrence, as raw bytes: registers and dtypes do not limit how many are in
// flight. Threads exchange nothing but squared changes; the last block of a sample adds up those of all blocks.
#pragma once

#include <cuda_runtime.h>

#include "common/cuda_divide.cuh"
#include "common/cuda_rows.cuh"
#include "common/cuda_tickets.cuh"
#include "picard_update/picard_update.h"

namespace parasample {

extern __shared__ uint4 dynamic_shared[];  // see CudaPlan

namespace {

constexpr int kMaxThreads = 256;
constexpr int kWarp = 32;
constexpr int kMaxDepth = 16;  // rows in flight
// Rows whose coefficients are fetched, and whose squared changes are added up, together. The ring holds the tile in
// work, the next, where rows are fetched (so kTile >= kMaxDepth), and one on its way.
constexpr int kTile = 16;
constexpr int kTilesInRing = 3;

template <typename Real>
__device__ __forceinline__ const Real* table(const void* data) {
  return static_cast<const Real*>(data);
}

// Ranges cannot be checked without waiting for the device; clipping keeps every access inside the tensors.
struct Range {
  int begin, hold, end;
  __device__ Range(const PicardUpdate& call, int sample) {
    const auto clipped = [&](int64_t row, int least) { return int(min(max(row, int64_t(least)), call.num_steps)); };
    begin = clipped(call.begin[sample], 0);
    end = clipped(call.end[sample], 0);
    hold = clipped(call.hold[sample], begin - 1);
  }
};

// A row of the ring: state, anchor and output coefficients [K each], noise coefficient, x0 [2], weights [R].
__host__ __device__ constexpr int coefs_per_row(int history, int rank) { return 3 * history + 3 + rank; }

// The threads that share a row of squared changes, and its pitch, which keeps their reads on different banks.
__host__ __device__ constexpr int lanes_per_row(int threads) { return threads / kTile; }
__host__ __device__ constexpr int squares_pitch(int threads) { return threads + lanes_per_row(threads); }

template <typename Real, int K, int kWidth>
struct Scan {
  const PicardUpdate& call;
  const CudaPlan& plan;
  const Range range;
  const int sample, block;
  const int64_t element;
  const bool active;  // the thread owns elements; idle ones still take part in sums and barriers
  const int first;    // the walk starts before `begin`: those rows bring the history of anchors and outputs
  unsigned char* const shared;

  __device__ Scan(const PicardUpdate& c, const CudaPlan& p, int sample_index, int block_index)
      : call(c), plan(p), range(c, sample_index), sample(sample_index), block(block_index),
        element((int64_t(block_index) * p.threads + threadIdx.x) * kWidth), active(element < c.num_elements),
        // A held prediction needs row begin - 1 even where the recurrence itself is not that deep.
        first(max(range.begin - (range.hold < range.begin && K < 2 ? 2 : K), -1)),
        shared(reinterpret_cast<unsigned char*>(dynamic_shared)) {}

  __device__ int64_t place(const Rows& rows, int row) const {
    return row * rows.stride_row + sample * rows.stride_sample + element;
  }
  __device__ int64_t place_of_direction(int row, int r) const {
    return place(call.directions, row) + r * call.stride_direction;
  }

  // ---- coefficients ----------------------------------------------------------------------------------------

  __device__ Real* coefs(int row) const {
    const int slot = (row - first) % (kTilesInRing * kTile);
    return reinterpret_cast<Real*>(shared) + slot * coefs_per_row(K, call.rank);
  }
  __device__ const Real* weights(int row) const { return coefs(row) + 3 * K + 3; }

  __device__ void fetch_coefs(int tile) const {
    const int per_row = coefs_per_row(K, call.rank);
    for (int n = threadIdx.x; n < kTile * per_row; n += plan.threads) {
      const int row = first + tile * kTile + n / per_row;
      const int j = n % per_row;
      if (row < 0 || row >= range.end) continue;
      const Real* from;
      if (j < K) {
        from = table<Real>(call.state_coef) + row * K + j;
      } else if (j < 2 * K) {
        from = table<Real>(call.anchor_coef) + row * K + j - K;
      } else if (j < 3 * K) {
        from = table<Real>(call.output_coef) + row * K + j - 2 * K;
      } else if (j == 3 * K) {
        from = table<Real>(call.noise_coef) + row;
      } else if (j < 3 * K + 3) {
        from = table<Real>(call.x0_coef) + 2 * row + j - 3 * K - 1;
      } else {
        from = table<Real>(call.weights) + (row * call.num_samples + sample) * call.rank + j - 3 * K - 3;
      }
      copy_async<sizeof(Real)>(coefs(row) + j, from);
    }
  }

  // ---- rows in flight --------------------------------------------------------------------------------------

  // Iteration i of the walk uses anchor i + 1 and output i, unless they are not part of the history.
  __device__ bool uses_anchor(int i) const { return i >= range.begin || i + 1 <= range.hold; }
  __device__ bool uses_output(int i) const { return i > first && i <= range.hold; }
  __device__ bool uses_noise(int i) const {
    return i >= range.begin && call.noise.data != nullptr && coefs(i)[3 * K] != Real(0);
  }

  __device__ unsigned char* row_slots(int stage) const { return shared + plan.rows_at + stage * plan.row_bytes; }
  __device__ unsigned char* slot(unsigned char* slots, const Rows& rows) const {
    return slots + threadIdx.x * slot_bytes(rows.dtype, kWidth);
  }
  __device__ unsigned char* direction_slot(int stage, int r) const {
    const int bytes = slot_bytes(call.directions.dtype, kWidth);
    return row_slots(stage) + plan.directions_at + (r * plan.threads + int(threadIdx.x)) * bytes;
  }

  __device__ void fetch_row(int i, int stage) const {
    if (!active || i >= range.end) return;
    unsigned char* slots = row_slots(stage);
    if (uses_anchor(i)) fetch<kWidth>(slot(slots, call.anchors), call.anchors, place(call.anchors, i + 1));
    if (uses_output(i)) {
      fetch<kWidth>(slot(slots + plan.outputs_at, call.outputs), call.outputs, place(call.outputs, i));
    }
  }
  // What is read or not by its coefficient: needs those of row i.
  __device__ void fetch_weighted(int i, int stage) const {
    if (!active || i >= range.end) return;
    if (uses_noise(i)) {
      fetch<kWidth>(slot(row_slots(stage) + plan.noise_at, call.noise), call.noise, place(call.noise, i));
    }
    if (!uses_output(i)) return;
    for (int r = 0; r < call.rank; ++r) {
      if (weights(i)[r] == Real(0)) continue;
      fetch<kWidth>(direction_slot(stage, r), call.directions, place_of_direction(i, r));
    }
  }

  // The row about to be used has come when at most depth - 1 later groups still run.
  __device__ void wait_for_row() const {
    switch (plan.depth) {
      case 16: wait_for_groups<15>(); break;
      case 12: wait_for_groups<11>(); break;
      case 8: wait_for_groups<7>(); break;
      case 6: wait_for_groups<5>(); break;
      case 4: wait_for_groups<3>(); break;
      case 3: wait_for_groups<2>(); break;
      default: wait_for_groups<1>();
    }
  }

  // ---- squared changes -------------------------------------------------------------------------------------

  __device__ Real* squares(int row_in_tile) const {
    return reinterpret_cast<Real*>(shared + plan.squares_at) + row_in_tile * squares_pitch(plan.threads);
  }

  // The block's sums of the rows `from` .. `to` - 1 of the walk, a tile at most, go to the workspace.
  __device__ void write_partials(Real* partial, int from, int to) const {
    const int lanes = lanes_per_row(plan.threads), lane = threadIdx.x % lanes, row_in_tile = threadIdx.x / lanes;
    const int i = from + row_in_tile;
    Real sum = 0;
#pragma unroll
    for (int n = 0; n < kTile; ++n) sum += squares(row_in_tile)[n * lanes + lane];
    for (int half = lanes / 2; half > 0; half /= 2) sum += __shfl_down_sync(~0u, sum, half);
    if (lane == 0 && i >= range.begin && i < to) {
      partial[(sample * (call.num_steps + 1) + i + 1) * plan.blocks + block] = sum;
    }
  }

  // ---- the walk --------------------------------------------------------------------------------------------

  // States begin, begin - 1, .. as stored. One dtype for the whole loop, so that its loads are issued together.
  template <typename Stored, typename Convert>
  __device__ void load_states(Real (&x)[K][kWidth], Convert convert) const {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (range.begin - k < 0) continue;
      const Stored* from = static_cast<const Stored*>(call.states.data) + place(call.states, range.begin - k);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) x[k][e] = convert(from[e]);
    }
  }

  __device__ void run(Real* partial) const {
    fetch_coefs(0);
    fetch_coefs(1);
    end_group();
    for (int stage = 0; stage < plan.depth; ++stage) fetch_row(first + stage, stage);
    end_group();
    Real x[K][kWidth] = {}, xa[K][kWidth] = {}, m[K][kWidth] = {};  // entry k belongs to row i - k
    Real held_x0[kWidth] = {};
    if (active) {
      const DType dtype = call.states.dtype;
      if (sizeof(Real) == 8 || dtype == DType::kFloat32) {
        load_states<Real>(x, [](Real stored) { return stored; });
      } else {
        load_states<unsigned short>(x, [=](unsigned short bits) { return of_16_bits<Real>(bits, dtype); });
      }
    }
    wait_for_groups<1>();
    __syncthreads();
    for (int stage = 0; stage < plan.depth; ++stage) {
      fetch_weighted(first + stage, stage);
      end_group();
    }

    int stage = 0, row_in_tile = 0;
    for (int i = first; i < range.end; ++i) {
      wait_for_row();
      if (row_in_tile == 0) {
        __syncthreads();  // the squares of the last tile are written, the coefficients of the next one are here
        if (i > first) {
          write_partials(partial, i - kTile, i);
          __syncthreads();
        }
        fetch_coefs((i - first) / kTile + 2);
      }
      if (active) {
        advance(i, stage, row_in_tile, x, xa, m, held_x0);
      } else {
        squares(row_in_tile)[threadIdx.x] = 0;
      }
      fetch_row(i + plan.depth, stage);
      fetch_weighted(i + plan.depth, stage);
      end_group();
      stage = stage + 1 == plan.depth ? 0 : stage + 1;
      row_in_tile = (row_in_tile + 1) % kTile;
    }
    __syncthreads();
    write_partials(partial, range.end - (row_in_tile == 0 ? kTile : row_in_tile), range.end);
  }

  __device__ __forceinline__ void advance(int i, int stage, int row_in_tile, Real (&x)[K][kWidth],
                                          Real (&xa)[K][kWidth], Real (&m)[K][kWidth],
                                          Real (&held_x0)[kWidth]) const {
    unsigned char* slots = row_slots(stage);
    const Real* coef = coefs(i);
    const Real u = coef[3 * K + 1], w = coef[3 * K + 2];
    Real old[kWidth] = {};
    if (uses_anchor(i)) read(old, slot(slots, call.anchors), call.anchors, place(call.anchors, i + 1));
    if (uses_output(i)) {
      read(m[0], slot(slots + plan.outputs_at, call.outputs), call.outputs, place(call.outputs, i));
      for (int r = 0; r < call.rank; ++r) {
        const Real weight = weights(i)[r];
        if (weight == Real(0)) continue;
        Real direction[kWidth];
        read(direction, direction_slot(stage, r), call.directions, place_of_direction(i, r));
#pragma unroll
        for (int e = 0; e < kWidth; ++e) m[0][e] += weight * direction[e];
      }
      if (i == range.hold) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) held_x0[e] = u * xa[0][e] + w * m[0][e];
      }
    } else if (i > range.hold) {
      const Real inverse_w = inverse(w);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) m[0][e] = (held_x0[e] - u * x[0][e]) * inverse_w;
    }

    if (i >= range.begin) {
      Real total[kWidth] = {};
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (i - k < 0) continue;
        add(total, coef[k], x[k]);
        add(total, coef[K + k], xa[k]);
        add(total, coef[2 * K + k], m[k]);
      }
      if (uses_noise(i)) {
        Real z[kWidth];
        read(z, slot(slots + plan.noise_at, call.noise), call.noise, place(call.noise, i));
        add(total, coef[3 * K], z);
      }
#pragma unroll
      for (int k = K - 1; k > 0; --k) copy(x[k], x[k - 1]);
      copy(x[0], total);
      store(total, call.states, place(call.states, i + 1));
      Real squared = 0;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) squared += (total[e] - old[e]) * (total[e] - old[e]);
      squares(row_in_tile)[threadIdx.x] = squared;
    }
#pragma unroll
    for (int k = K - 1; k > 0; --k) copy(xa[k], xa[k - 1]), copy(m[k], m[k - 1]);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) xa[0][e] = i + 1 <= range.hold ? old[e] : x[0][e];
  }

  // A term whose coefficient is zero is left out, whatever its value.
  __device__ static void add(Real (&total)[kWidth], Real coef, const Real (&value)[kWidth]) {
    if (coef == Real(0)) return;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) total[e] += coef * value[e];
  }
  __device__ static void copy(Real (&to)[kWidth], const Real (&from)[kWidth]) {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) to[e] = from[e];
  }
};

// The residual of all rows of a sample, by one block. A warp adds up several rows side by side: that many loads are
// in flight, and the order of the sums is fixed.
template <typename Real>
__device__ void write_residual(const PicardUpdate& call, const CudaPlan& plan, const Real* partial, int sample) {
  constexpr int kRows = 8;
  const Range range(call, sample);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = plan.threads / kWarp;
  const Real* from = partial + sample * (call.num_steps + 1) * plan.blocks;
  for (int row = warp * kRows; row <= call.num_steps; row += warps * kRows) {
    Real sum[kRows] = {};
#pragma unroll 4
    for (unsigned n = lane; n < plan.blocks; n += kWarp) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (row + r > range.begin && row + r <= range.end) sum[r] += from[int64_t(row + r) * plan.blocks + n];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      for (int half = kWarp / 2; half > 0; half /= 2) sum[r] += __shfl_down_sync(~0u, sum[r], half);
      if (lane != 0 || row + r > call.num_steps) continue;
      const bool inside = row + r > range.begin && row + r <= range.end;
      static_cast<Real*>(call.residual)[(row + r) * call.num_samples + sample] =
          inside ? table<Real>(call.residual_scale)[row + r] * sum[r] : Real(INFINITY);
    }
  }
}

// At least two blocks a multiprocessor: without a number the compiler aims at more, and spills for them.
template <typename Real, int K, int kWidth>
__global__ void __launch_bounds__(kMaxThreads, 2)
    picard_update(const __grid_constant__ PicardUpdate call, const __grid_constant__ CudaPlan plan, Real* partial,
                  int booklet) {
  const int sample = blockIdx.x / plan.blocks, block = blockIdx.x % plan.blocks;  // 64-bit division is a call
  const Scan<Real, K, kWidth> scan(call, plan, sample, block);
  if (scan.range.begin < scan.range.end) scan.run(partial);

  const int ticket = sample % kTickets;
  const int64_t samples = (call.num_samples - ticket + kTickets - 1) / kTickets;  // that share it
  // Shared memory is free again once all threads are here, and the first barrier of last_block sees to that.
  bool* flag = reinterpret_cast<bool*>(dynamic_shared);
  if (!last_block(booklet * kTickets + ticket, unsigned(samples) * plan.blocks, flag)) return;
  for (int s = ticket; s < call.num_samples; s += kTickets) write_residual(call, plan, partial, s);
}

}  // namespace
}  // namespace parasample
