// Conversions between stored and computed types, a row chunk at a time. Included only by the per-instruction-
// set files: everything has internal linkage, because an inline function shared between files compiled for
// different instruction sets could be linked from the wrong one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/rows.h"

namespace parasample {
namespace {

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float bfloat16_to_float(uint16_t stored) { return float_of_bits(uint32_t(stored) << 16); }

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  return value != value ? uint16_t(0x7fc0) : uint16_t(rounded);
}

#if defined(__F16C__)
inline float half_to_float(uint16_t stored) { return _cvtsh_ss(stored); }
inline uint16_t float_to_half(float value) { return uint16_t(_cvtss_sh(value, 0)); }
#else
inline float half_to_float(uint16_t stored) {
  const uint32_t sign = uint32_t(stored & 0x8000u) << 16;
  const uint32_t magnitude = stored & 0x7fffu;
  if (magnitude < 0x0400u) {  // zero and subnormals are multiples of 2^-24
    return float_of_bits(sign | bits_of_float(float(magnitude) * 0x1p-24f));
  }
  const uint32_t rebias = magnitude >= 0x7c00u ? 224u << 23 : 112u << 23;  // infinity and NaN, or a number
  return float_of_bits(sign | ((magnitude << 13) + rebias));
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);   // NaN
  if (magnitude >= 0x47800000u) return uint16_t(sign | 0x7c00u);  // 65536 and above: infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 leaves exactly the bits of a subnormal half, rounded to even by the adder.
    return uint16_t(sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u));
  }
  return uint16_t(sign | ((magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13));
}
#endif

template <typename Real>
void load_row(Real* __restrict to, const void* from, DType dtype, int64_t offset, int64_t count) {
  switch (dtype) {
    case DType::kFloat32: {
      const float* source = static_cast<const float*>(from) + offset;
      for (int64_t j = 0; j < count; ++j) to[j] = Real(source[j]);
      break;
    }
    case DType::kFloat64: {
      const double* source = static_cast<const double*>(from) + offset;
      for (int64_t j = 0; j < count; ++j) to[j] = Real(source[j]);
      break;
    }
    case DType::kBFloat16: {
      const uint16_t* source = static_cast<const uint16_t*>(from) + offset;
      for (int64_t j = 0; j < count; ++j) to[j] = Real(bfloat16_to_float(source[j]));
      break;
    }
    case DType::kFloat16: {
      const uint16_t* source = static_cast<const uint16_t*>(from) + offset;
      int64_t j = 0;
#if defined(__F16C__)
      for (; j + 8 <= count; j += 8) {
        const __m256 eight = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + j)));
        if constexpr (sizeof(Real) == sizeof(float)) {
          _mm256_storeu_ps(to + j, eight);
        } else {
          _mm256_storeu_pd(to + j, _mm256_cvtps_pd(_mm256_castps256_ps128(eight)));
          _mm256_storeu_pd(to + j + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(eight, 1)));
        }
      }
#endif
      for (; j < count; ++j) to[j] = Real(half_to_float(source[j]));
      break;
    }
  }
}

// Rounds new values to the storage type, stores them, and returns the sum of (stored - old)^2.
inline float store_bfloat16(uint16_t* __restrict to, const float* __restrict value, const float* __restrict old,
                            int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) {
    const uint16_t stored = float_to_bfloat16(value[j]);
    to[j] = stored;
    const float change = bfloat16_to_float(stored) - old[j];
    sum += change * change;
  }
  return sum;
}

inline float store_float16(uint16_t* __restrict to, const float* __restrict value, const float* __restrict old,
                           int64_t count) {
  float sum = 0;
  int64_t j = 0;
#if defined(__F16C__)
  __m256 sums = _mm256_setzero_ps();
  for (; j + 8 <= count; j += 8) {
    const __m128i stored = _mm256_cvtps_ph(_mm256_loadu_ps(value + j), 0);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + j), stored);
    const __m256 change = _mm256_sub_ps(_mm256_cvtph_ps(stored), _mm256_loadu_ps(old + j));
    sums = _mm256_add_ps(sums, _mm256_mul_ps(change, change));
  }
  float lanes[8];
  _mm256_storeu_ps(lanes, sums);
  for (int lane = 0; lane < 8; ++lane) sum += lanes[lane];
#endif
  for (; j < count; ++j) {
    to[j] = float_to_half(value[j]);
    const float change = half_to_float(to[j]) - old[j];
    sum += change * change;
  }
  return sum;
}

// Rounds values to a storage type, by way of float for the 16-bit ones, as torch does.
template <typename Real>
void store_row(void* to, DType dtype, int64_t offset, const Real* __restrict value, int64_t count) {
  switch (dtype) {
    case DType::kFloat32: {
      float* target = static_cast<float*>(to) + offset;
      for (int64_t j = 0; j < count; ++j) target[j] = float(value[j]);
      break;
    }
    case DType::kFloat64: {
      double* target = static_cast<double*>(to) + offset;
      for (int64_t j = 0; j < count; ++j) target[j] = double(value[j]);
      break;
    }
    case DType::kBFloat16: {
      uint16_t* target = static_cast<uint16_t*>(to) + offset;
      for (int64_t j = 0; j < count; ++j) target[j] = float_to_bfloat16(float(value[j]));
      break;
    }
    case DType::kFloat16: {
      uint16_t* target = static_cast<uint16_t*>(to) + offset;
      int64_t j = 0;
#if defined(__F16C__)
      if constexpr (sizeof(Real) == sizeof(float)) {
        for (; j + 8 <= count; j += 8) {
          const __m128i stored = _mm256_cvtps_ph(_mm256_loadu_ps(value + j), 0);
          _mm_storeu_si128(reinterpret_cast<__m128i*>(target + j), stored);
        }
      }
#endif
      for (; j < count; ++j) target[j] = float_to_half(float(value[j]));
      break;
    }
  }
}

}  // namespace
}  // namespace parasample
