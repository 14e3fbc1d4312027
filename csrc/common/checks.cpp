#include "common/checks.h"

#include <sstream>

namespace parasample {

const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Bool: return "bool";
    default: return "another dtype";
  }
}

std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ']';
  return text.str();
}

void Checks::shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected,
                   const char* meaning) const {
  bool same = tensor.dim() == int64_t(expected.size());
  int64_t i = 0;
  for (int64_t size : expected) same = same && tensor.size(i++) == size;
  if (same) return;
  std::ostringstream wanted;
  const char* separator = "";
  for (int64_t size : expected) wanted << separator << size, separator = ", ";
  STD_TORCH_CHECK(false, op_, ": ", name, " must have shape ", meaning, " = [", wanted.str(), "], found ",
                  shape_of(tensor), "; ", sizes_);
}

void Checks::device(const char* name, const Tensor& tensor) const {
  STD_TORCH_CHECK(tensor.is_cuda() == like_.is_cuda() && tensor.get_device_index() == like_.get_device_index(),
                  op_, ": ", name, " must be on the device of ", like_name_, ", found ",
                  tensor.is_cuda() ? "cuda:" : "cpu:", int(tensor.get_device_index()), " beside ",
                  like_.is_cuda() ? "cuda:" : "cpu:", int(like_.get_device_index()), "; move it with .to()");
}

void* Checks::table(const char* name, const Tensor& tensor, ScalarType dtype) const {
  device(name, tensor);
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, op_, ": ", name, " must be ", dtype_name(dtype), ", found ",
                  dtype_name(tensor.scalar_type()), "; convert it with .to()");
  STD_TORCH_CHECK(tensor.is_contiguous(), op_, ": ", name,
                  " must be contiguous, found a strided view; pass .contiguous()");
  return const_cast<void*>(tensor.data_ptr());
}

Rows Checks::rows(const char* name, const Tensor& tensor) const {
  device(name, tensor);
  const int64_t last = tensor.dim() - 1;
  STD_TORCH_CHECK(tensor.size(last) <= 1 || tensor.stride(last) == 1, op_, ": ", name,
                  " must have unit stride in D, found stride ", tensor.stride(last), "; pass a .contiguous() tensor");
  return {const_cast<void*>(tensor.data_ptr()), tensor.stride(0), last > 1 ? tensor.stride(1) : 0,
          float_dtype(name, tensor.scalar_type())};
}

DType Checks::float_dtype(const char* name, ScalarType dtype) const {
  switch (dtype) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, op_, ": ", name, " must be float32, float64, float16 or bfloat16, found ",
                      dtype_name(dtype), "; convert it with .to()");
  }
  return DType::kFloat32;  // not reached
}

}  // namespace parasample
