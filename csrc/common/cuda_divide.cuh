// Division without a subroutine.
#pragma once

#include <cuda_runtime.h>

namespace parasample {
namespace {

// 1 / w within 2 ulp, for |w| from 1e-37 to 1e37. A true division is a call of a subroutine, around which the
// compiler spills what is live.
__device__ __forceinline__ float inverse(float w) { return __fdividef(1.0f, w); }
__device__ __forceinline__ double inverse(double w) {
  double guess = inverse(float(w));  // 23 bits; each Newton step doubles them
  guess *= 2.0 - w * guess;
  return guess * (2.0 - w * guess);
}

}  // namespace
}  // namespace parasample
