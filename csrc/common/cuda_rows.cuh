// Rows of any float dtype on the device: fetched as raw bytes, converted where they are used. A thread owns kWidth
// neighbouring elements, 1 or 4; with 4 every row is aligned for vectors of 4 (see `aligned_for_vectors`).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/cuda_async.cuh"
#include "common/rows.h"

namespace parasample {
namespace {

__host__ __device__ __forceinline__ int element_bytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kFloat64 ? 8 : 2;
}

// Shared memory for a thread's part of a row in flight. The copy engine moves no less than 4 bytes.
__host__ __device__ __forceinline__ int slot_bytes(DType dtype, int width) {
  const int bytes = width * element_bytes(dtype);
  return bytes < 4 ? 4 : bytes;
}

// A vector is 8 (16-bit types) or 16 bytes; float64 takes two of 16.
inline bool aligned_for_vectors(const Rows& rows) {
  const uint64_t vector = element_bytes(rows.dtype) == 2 ? 8 : 16;
  return rows.data == nullptr || (reinterpret_cast<uint64_t>(rows.data) % vector == 0 &&
                                  rows.stride_row % 4 == 0 && rows.stride_sample % 4 == 0);
}

// Starts copying the elements at `at` to the slot at `to`.
template <int kWidth>
__device__ __forceinline__ void fetch(unsigned char* to, const Rows& rows, int64_t at) {
  const unsigned char* from = static_cast<const unsigned char*>(rows.data) + at * element_bytes(rows.dtype);
  switch (rows.dtype) {
    case DType::kFloat32: copy_async<4 * kWidth>(to, from); break;
    case DType::kFloat64:
      if constexpr (kWidth == 1) {
        copy_async<8>(to, from);
      } else {
        copy_async<16>(to, from);
        copy_async<16>(to + 16, from + 16);
      }
      break;
    default:
      if constexpr (kWidth == 1) {
        // The aligned word that holds the element. It may reach two bytes beyond the tensor, never beyond the
        // allocation, which starts and ends on a multiple of 256.
        copy_async<4>(to, reinterpret_cast<const void*>(reinterpret_cast<uint64_t>(from) & ~uint64_t(3)));
      } else {
        copy_async<8>(to, from);
      }
  }
}

template <typename Real>
__device__ __forceinline__ Real of_16_bits(unsigned bits, DType dtype) {
  if (dtype == DType::kBFloat16) return Real(__uint_as_float(bits << 16));
  return Real(__half2float(__ushort_as_half(static_cast<unsigned short>(bits))));
}

// Converts what `fetch` brought from `at`.
template <typename Real, int kWidth>
__device__ __forceinline__ void read(Real (&to)[kWidth], const unsigned char* slot, const Rows& rows, int64_t at) {
  switch (rows.dtype) {
    case DType::kFloat32:
      if constexpr (kWidth == 1) {
        to[0] = Real(*reinterpret_cast<const float*>(slot));
      } else {
        const float4 four = *reinterpret_cast<const float4*>(slot);
        to[0] = Real(four.x), to[1] = Real(four.y), to[2] = Real(four.z), to[3] = Real(four.w);
      }
      break;
    case DType::kFloat64:
#pragma unroll
      for (int e = 0; e < kWidth; ++e) to[e] = Real(reinterpret_cast<const double*>(slot)[e]);
      break;
    default:
      if constexpr (kWidth == 1) {
        const uint64_t address = reinterpret_cast<uint64_t>(rows.data) + 2 * at;
        const unsigned word = *reinterpret_cast<const unsigned*>(slot);
        to[0] = of_16_bits<Real>(address % 4 == 0 ? word & 0xffffu : word >> 16, rows.dtype);
      } else {
        const uint2 four = *reinterpret_cast<const uint2*>(slot);
        to[0] = of_16_bits<Real>(four.x & 0xffffu, rows.dtype), to[1] = of_16_bits<Real>(four.x >> 16, rows.dtype);
        to[2] = of_16_bits<Real>(four.y & 0xffffu, rows.dtype), to[3] = of_16_bits<Real>(four.y >> 16, rows.dtype);
      }
  }
}

// Rounds a value to 16 bits and leaves it as rounded.
template <typename Real>
__device__ __forceinline__ unsigned to_16_bits(Real& value, DType dtype) {
  const unsigned bits = dtype == DType::kBFloat16 ? __bfloat16_as_ushort(__float2bfloat16_rn(float(value)))
                                                  : __half_as_ushort(__float2half_rn(float(value)));
  value = of_16_bits<Real>(bits, dtype);
  return bits;
}

// Stores values rounded to the type of the rows and leaves them as stored. Real is float64 only for float64 rows.
template <typename Real, int kWidth>
__device__ __forceinline__ void store(Real (&value)[kWidth], const Rows& rows, int64_t at) {
  if (sizeof(Real) == 8 || rows.dtype == DType::kFloat32) {
    Real* to = static_cast<Real*>(rows.data) + at;
    if constexpr (kWidth == 1) {
      *to = value[0];
    } else {
      *reinterpret_cast<float4*>(to) = make_float4(value[0], value[1], value[2], value[3]);
    }
    return;
  }
  unsigned short* to = static_cast<unsigned short*>(rows.data) + at;
  unsigned bits[kWidth];
#pragma unroll
  for (int e = 0; e < kWidth; ++e) bits[e] = to_16_bits(value[e], rows.dtype);
  if constexpr (kWidth == 1) {
    *to = static_cast<unsigned short>(bits[0]);
  } else {
    *reinterpret_cast<uint2*>(to) = make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
  }
}

}  // namespace
}  // namespace parasample
