#pragma once

#include <cstring>

struct __half {
  _Float16 value;
};
inline float __half2float(__half half) { return float(half.value); }
inline __half __float2half_rn(float value) { return {_Float16(value)}; }
inline unsigned short __half_as_ushort(__half half) {
  unsigned short bits;
  std::memcpy(&bits, &half, sizeof(bits));
  return bits;
}
inline __half __ushort_as_half(unsigned short bits) {
  __half half;
  std::memcpy(&half, &bits, sizeof(half));
  return half;
}
