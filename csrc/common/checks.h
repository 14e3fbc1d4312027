// Checks that every op makes of its arguments. Everything that a kernel relies on is checked before anything is
// written; kernels check nothing. Messages name the op and the argument, what was expected, what was found and
// what to do.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <string>

#include "common/rows.h"

namespace parasample {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const char* dtype_name(ScalarType dtype);
std::string shape_of(const Tensor& tensor);

class Checks {
 public:
  // `like`: the argument whose device all others must be on; `sizes` says where the sizes in shapes come from.
  Checks(const char* op, const Tensor& like, const char* like_name, const char* sizes)
      : op_(op), like_(like), like_name_(like_name), sizes_(sizes) {}

  void shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected,
             const char* meaning) const;
  void device(const char* name, const Tensor& tensor) const;
  // Device, dtype and layout of an argument that kernels index as a plain array.
  void* table(const char* name, const Tensor& tensor, ScalarType dtype) const;
  // Device, dtype (any float) and layout (unit stride in the last dimension) of a [rows, B, .., D] argument.
  Rows rows(const char* name, const Tensor& tensor) const;
  DType float_dtype(const char* name, ScalarType dtype) const;

 private:
  const char* op_;
  const Tensor& like_;
  const char* like_name_;
  const char* sizes_;
};

}  // namespace parasample
