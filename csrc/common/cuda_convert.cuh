// Conversions between stored and computed types in CUDA kernels: the stored type is looked at once for
// several elements, so that their loads are in flight together.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/rows.h"

namespace parasample {
namespace {

template <typename Real>
__device__ __forceinline__ Real as_real(float stored) {
  return Real(stored);
}
template <typename Real>
__device__ __forceinline__ Real as_real(double stored) {
  return Real(stored);
}
template <typename Real>
__device__ __forceinline__ Real as_real(__half stored) {
  return Real(__half2float(stored));
}
template <typename Real>
__device__ __forceinline__ Real as_real(__nv_bfloat16 stored) {
  return Real(__bfloat162float(stored));
}

template <typename Real>
__device__ __forceinline__ void round_to(float& stored, Real value) {
  stored = float(value);
}
template <typename Real>
__device__ __forceinline__ void round_to(double& stored, Real value) {
  stored = double(value);
}
template <typename Real>
__device__ __forceinline__ void round_to(__half& stored, Real value) {
  stored = __float2half_rn(float(value));
}
template <typename Real>
__device__ __forceinline__ void round_to(__nv_bfloat16& stored, Real value) {
  stored = __float2bfloat16_rn(float(value));
}

// Elements at, at + Step, .. of `from` that lie before `end`; the others are 0.
template <int Step, int N, typename Real, typename Stored>
__device__ __forceinline__ void load_typed(Real (&to)[N], const Stored* from, int64_t at, int64_t end) {
#pragma unroll
  for (int k = 0; k < N; ++k) to[k] = at + k * Step < end ? as_real<Real>(from[at + k * Step]) : Real(0);
}

template <int Step, int N, typename Real, typename Stored>
__device__ __forceinline__ void store_typed(Stored* to, int64_t at, int64_t end, const Real (&from)[N]) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (at + k * Step < end) round_to(to[at + k * Step], from[k]);
  }
}

template <int Step, int N, typename Real>
__device__ __forceinline__ void load_elements(Real (&to)[N], const void* row, DType dtype, int64_t offset,
                                              int64_t at, int64_t end) {
  switch (dtype) {
    case DType::kFloat32: load_typed<Step>(to, static_cast<const float*>(row) + offset, at, end); break;
    case DType::kFloat64: load_typed<Step>(to, static_cast<const double*>(row) + offset, at, end); break;
    case DType::kFloat16: load_typed<Step>(to, static_cast<const __half*>(row) + offset, at, end); break;
    default: load_typed<Step>(to, static_cast<const __nv_bfloat16*>(row) + offset, at, end); break;
  }
}

template <int Step, int N, typename Real>
__device__ __forceinline__ void store_elements(void* row, DType dtype, int64_t offset, int64_t at,
                                               int64_t end, const Real (&from)[N]) {
  switch (dtype) {
    case DType::kFloat32: store_typed<Step>(static_cast<float*>(row) + offset, at, end, from); break;
    case DType::kFloat64: store_typed<Step>(static_cast<double*>(row) + offset, at, end, from); break;
    case DType::kFloat16: store_typed<Step>(static_cast<__half*>(row) + offset, at, end, from); break;
    default: store_typed<Step>(static_cast<__nv_bfloat16*>(row) + offset, at, end, from); break;
  }
}

}  // namespace
}  // namespace parasample
