// The CUDA kernels of picard_update, from raw pointers. One thread owns one element of one sample and walks its rows, with
// the history in registers; nothing is exchanged between threads but the residual sums, which go warp by warp
// to a workspace and are added up in a fixed order by a second kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "picard_update/picard_update.h"

namespace parasample {
namespace {

constexpr int kThreads = 128;      // small blocks spread a single sample over more multiprocessors
constexpr int kWarp = 32;

// Rows loaded ahead of the recurrence, to hide the latency of memory; deep histories leave registers for fewer.
template <int K>
constexpr int kRowsInFlight = K <= 2 ? 4 : 2;

template <typename Real>
__device__ __forceinline__ Real load(const Rows& rows, int64_t row, int64_t place) {
  const int64_t at = row * rows.stride_row + place;
  switch (rows.dtype) {
    case DType::kFloat32: return Real(static_cast<const float*>(rows.data)[at]);
    case DType::kFloat64: return Real(static_cast<const double*>(rows.data)[at]);
    case DType::kFloat16: return Real(__half2float(static_cast<const __half*>(rows.data)[at]));
    default: return Real(__bfloat162float(static_cast<const __nv_bfloat16*>(rows.data)[at]));
  }
}

// Stores `value` rounded to the type of the rows; returns it as stored.
template <typename Real>
__device__ __forceinline__ Real store(const Rows& rows, int64_t row, int64_t place, Real value) {
  const int64_t at = row * rows.stride_row + place;
  switch (rows.dtype) {
    case DType::kFloat32: return Real(static_cast<float*>(rows.data)[at] = float(value));
    case DType::kFloat64: return Real(static_cast<double*>(rows.data)[at] = double(value));
    case DType::kFloat16: {
      const __half stored = __float2half_rn(float(value));
      static_cast<__half*>(rows.data)[at] = stored;
      return Real(__half2float(stored));
    }
    default: {
      const __nv_bfloat16 stored = __float2bfloat16_rn(float(value));
      static_cast<__nv_bfloat16*>(rows.data)[at] = stored;
      return Real(__bfloat162float(stored));
    }
  }
}

template <typename Real>
__device__ __forceinline__ const Real* table(const void* data) {
  return static_cast<const Real*>(data);
}

// 1 / w within 2 ulp, for |w| from 1e-37 to 1e37. A true division is a call of a subroutine, around which the
// compiler spills the history.
__device__ __forceinline__ float inverse(float w) { return __fdividef(1.0f, w); }
__device__ __forceinline__ double inverse(double w) {
  double guess = inverse(float(w));  // 23 bits; each Newton step doubles them
  guess *= 2.0 - w * guess;
  return guess * (2.0 - w * guess);
}

// Ranges cannot be checked without waiting for the device; clipping keeps every access inside the tensors.
struct Range {
  int64_t begin, hold, end;
  __device__ Range(const PicardUpdate& call, int64_t sample) {
    begin = max(call.begin[sample], int64_t(0));
    end = min(call.end[sample], call.num_steps);
    hold = max(call.hold[sample], begin - 1);
  }
};

template <typename Real, int K>
__global__ void __launch_bounds__(kThreads) scan(PicardUpdate call, Real* partial, int64_t num_partials) {
  const int64_t sample = blockIdx.y;
  const int64_t element = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const Range range(call, sample);
  if (range.end <= range.begin) return;
  const bool active = element < call.num_elements;  // idle lanes still take part in the warp sums
  const int64_t states_at = sample * call.states.stride_sample + element;
  const int64_t anchors_at = sample * call.anchors.stride_sample + element;
  const int64_t outputs_at = sample * call.outputs.stride_sample + element;
  const int64_t noise_at = sample * call.noise.stride_sample + element;
  const Real* x0_coef = table<Real>(call.x0_coef);

  Real x[K] = {}, xa[K] = {}, m[K] = {};  // entry k belongs to row i - k
  Real held_x0 = 0;
  if (active) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t row = range.begin - k;
      if (row < 0) continue;
      x[k] = load<Real>(call.states, row, states_at);
      xa[k] = row <= range.hold ? load<Real>(call.anchors, row, anchors_at) : x[k];
      if (k > 0) m[k] = load<Real>(call.outputs, row, outputs_at);
    }
    if (range.hold < range.begin && range.hold >= 0) {
      held_x0 = x0_coef[2 * range.hold] * load<Real>(call.anchors, range.hold, anchors_at) +
                x0_coef[2 * range.hold + 1] * load<Real>(call.outputs, range.hold, outputs_at);
    }
  }

  for (int64_t first = range.begin; first < range.end; first += kRowsInFlight<K>) {
    Real next_m[kRowsInFlight<K>], next_xa[kRowsInFlight<K>], next_z[kRowsInFlight<K>];
#pragma unroll
    for (int r = 0; r < kRowsInFlight<K>; ++r) {
      const int64_t i = first + r;
      next_m[r] = next_xa[r] = next_z[r] = 0;
      if (!active || i >= range.end) continue;
      next_xa[r] = load<Real>(call.anchors, i + 1, anchors_at);
      if (i <= range.hold) next_m[r] = load<Real>(call.outputs, i, outputs_at);
      if (call.noise.data != nullptr && table<Real>(call.noise_coef)[i] != Real(0)) {
        next_z[r] = load<Real>(call.noise, i, noise_at);
      }
    }
#pragma unroll
    for (int r = 0; r < kRowsInFlight<K>; ++r) {
      const int64_t i = first + r;
      if (i >= range.end) break;
      const Real u = x0_coef[2 * i], w = x0_coef[2 * i + 1];
      m[0] = i <= range.hold ? next_m[r] : (held_x0 - u * x[0]) * inverse(w);
      if (i == range.hold) held_x0 = u * xa[0] + w * m[0];

      Real total = 0;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (i - k < 0) continue;
        const Real a = table<Real>(call.state_coef)[i * K + k];
        const Real c = table<Real>(call.anchor_coef)[i * K + k];
        const Real b = table<Real>(call.output_coef)[i * K + k];
        if (a != Real(0)) total += a * x[k];
        if (c != Real(0)) total += c * xa[k];
        if (b != Real(0)) total += b * m[k];
      }
      const Real s = table<Real>(call.noise_coef)[i];
      if (call.noise.data != nullptr && s != Real(0)) total += s * next_z[r];

      Real squared = 0;
      if (active) {
        const Real change = store<Real>(call.states, i + 1, states_at, total) - next_xa[r];
        squared = change * change;
      }
#pragma unroll
      for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) squared += __shfl_down_sync(~0u, squared, lanes);
      if (threadIdx.x % kWarp == 0) {
        const int64_t warp = element / kWarp;
        partial[((i + 1) * call.num_samples + sample) * num_partials + warp] = squared;
      }

#pragma unroll
      for (int k = K - 1; k > 0; --k) x[k] = x[k - 1], xa[k] = xa[k - 1], m[k] = m[k - 1];
      x[0] = total;
      xa[0] = i + 1 <= range.hold ? next_xa[r] : total;
    }
  }
}

// One block per (row, sample): each thread adds every kThreads-th partial, then a tree adds the threads.
template <typename Real>
__global__ void __launch_bounds__(kThreads) finish(PicardUpdate call, const Real* partial, int64_t num_partials) {
  __shared__ double sums[kThreads];
  const int64_t row = blockIdx.x, sample = blockIdx.y;
  Real* residual = static_cast<Real*>(call.residual) + row * call.num_samples + sample;
  const Range range(call, sample);
  if (row <= range.begin || row > range.end) {
    if (threadIdx.x == 0) *residual = Real(INFINITY);
    return;
  }
  const Real* from = partial + (row * call.num_samples + sample) * num_partials;
  double sum = 0;
  for (int64_t k = threadIdx.x; k < num_partials; k += kThreads) sum += double(from[k]);
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) *residual = Real(double(table<Real>(call.residual_scale)[row]) * sums[0]);
}

}  // namespace
}  // namespace parasample
