// Tensors as raw pointers, for kernels that see no torch header.
#pragma once

#include <cstdint>

namespace parasample {

enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

// A [rows, B, D] tensor (or [rows, D]: stride_sample is 0) with unit stride in D; strides are in elements.
// data == nullptr: absent.
struct Rows {
  void* data;
  int64_t stride_row;
  int64_t stride_sample;
  DType dtype;
};

}  // namespace parasample
