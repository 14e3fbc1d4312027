#include "picard_update_check.h"

#include <sstream>
#include <string>

namespace parasample {
namespace {

const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
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

DType float_dtype(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "picard_update: ", name, " must be float32, float64, float16 or bfloat16, found ",
                      dtype_name(tensor.scalar_type()), "; convert it with .to()");
  }
  return DType::kFloat32;  // not reached
}

void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected,
                 const char* meaning) {
  bool same = tensor.dim() == int64_t(expected.size());
  int64_t i = 0;
  for (int64_t size : expected) same = same && tensor.size(i++) == size;
  if (same) return;
  std::ostringstream wanted;
  const char* separator = "";
  for (int64_t size : expected) wanted << separator << size, separator = ", ";
  STD_TORCH_CHECK(false, "picard_update: ", name, " must have shape ", meaning, " = [", wanted.str(), "], found ",
                  shape_of(tensor), "; states [T+1, B, D] and state_coef [T, K] set T, B, D and K");
}

void check_device(const char* name, const Tensor& tensor, const Tensor& states) {
  STD_TORCH_CHECK(tensor.is_cuda() == states.is_cuda() && tensor.get_device_index() == states.get_device_index(),
                  "picard_update: ", name, " must be on the device of states, found ",
                  tensor.is_cuda() ? "cuda:" : "cpu:", int(tensor.get_device_index()), " beside ",
                  states.is_cuda() ? "cuda:" : "cpu:", int(states.get_device_index()), "; move it with .to()");
}

Rows check_rows(const char* name, const Tensor& tensor, const Tensor& states) {
  check_device(name, tensor, states);
  STD_TORCH_CHECK(tensor.size(2) <= 1 || tensor.stride(2) == 1, "picard_update: ", name,
                  " must have unit stride in D, found stride ", tensor.stride(2), "; pass a .contiguous() tensor");
  return {const_cast<void*>(tensor.data_ptr()), tensor.stride(0), tensor.stride(1), float_dtype(name, tensor)};
}

const void* check_table(const char* name, const Tensor& tensor, const Tensor& states, ScalarType dtype) {
  check_device(name, tensor, states);
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "picard_update: ", name, " must be ", dtype_name(dtype),
                  ", found ", dtype_name(tensor.scalar_type()), "; convert it with .to()");
  STD_TORCH_CHECK(tensor.is_contiguous(), "picard_update: ", name,
                  " must be contiguous, found a strided view; pass .contiguous()");
  return tensor.data_ptr();
}

}  // namespace

ScalarType real_dtype(const PicardUpdate& call) {
  return call.states.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

PicardUpdate check_picard_update(const PicardUpdateTensors& t) {
  const Tensor& states = t.states;
  STD_TORCH_CHECK(states.dim() == 3 && states.size(0) >= 1,
                  "picard_update: states must have shape [T+1, B, D] with T >= 0, found ", shape_of(states),
                  "; flatten the sample to D elements");
  const int64_t T = states.size(0) - 1, B = states.size(1), D = states.size(2);
  STD_TORCH_CHECK(t.state_coef.dim() == 2 && t.state_coef.size(1) >= 1 && t.state_coef.size(1) <= kMaxHistory,
                  "picard_update: state_coef must have shape [T, K] with K = 1 .. ", kMaxHistory, ", found ",
                  shape_of(t.state_coef), "; pass face='reference' or 'auto' for a longer history");
  const int64_t K = t.state_coef.size(1);
  check_shape("anchors", t.anchors, {T + 1, B, D}, "[T+1, B, D]");
  check_shape("outputs", t.outputs, {T, B, D}, "[T, B, D]");
  if (t.noise) check_shape("noise", *t.noise, {T, B, D}, "[T, B, D]");
  check_shape("state_coef", t.state_coef, {T, K}, "[T, K]");
  check_shape("anchor_coef", t.anchor_coef, {T, K}, "[T, K]");
  check_shape("output_coef", t.output_coef, {T, K}, "[T, K]");
  check_shape("noise_coef", t.noise_coef, {T}, "[T]");
  check_shape("x0_coef", t.x0_coef, {T, 2}, "[T, 2]");
  check_shape("residual_scale", t.residual_scale, {T + 1}, "[T+1]");
  check_shape("begin", t.begin, {B}, "[B]");
  check_shape("hold", t.hold, {B}, "[B]");
  check_shape("end", t.end, {B}, "[B]");

  PicardUpdate call{};
  call.states = check_rows("states", states, states);
  STD_TORCH_CHECK((states.stride(0) != 0 || T == 0) && (states.stride(1) != 0 || B <= 1),
                  "picard_update: states must own each element once, found an expanded view; pass a .clone()");
  call.anchors = check_rows("anchors", t.anchors, states);
  STD_TORCH_CHECK(call.anchors.dtype == call.states.dtype, "picard_update: anchors must have the dtype of states (",
                  dtype_name(states.scalar_type()), "), found ", dtype_name(t.anchors.scalar_type()),
                  "; convert it with .to()");
  STD_TORCH_CHECK(call.anchors.data != call.states.data ||
                      (call.anchors.stride_row == call.states.stride_row &&
                       (call.anchors.stride_sample == call.states.stride_sample || B <= 1)),
                  "picard_update: anchors that start at the memory of states must be the same view; pass states "
                  "itself or a .clone()");
  call.outputs = check_rows("outputs", t.outputs, states);
  if (t.noise) call.noise = check_rows("noise", *t.noise, states);

  const ScalarType real = real_dtype(call);
  call.state_coef = check_table("state_coef", t.state_coef, states, real);
  call.anchor_coef = check_table("anchor_coef", t.anchor_coef, states, real);
  call.output_coef = check_table("output_coef", t.output_coef, states, real);
  call.noise_coef = check_table("noise_coef", t.noise_coef, states, real);
  call.x0_coef = check_table("x0_coef", t.x0_coef, states, real);
  call.residual_scale = check_table("residual_scale", t.residual_scale, states, real);
  call.begin = static_cast<const int64_t*>(check_table("begin", t.begin, states, ScalarType::Long));
  call.hold = static_cast<const int64_t*>(check_table("hold", t.hold, states, ScalarType::Long));
  call.end = static_cast<const int64_t*>(check_table("end", t.end, states, ScalarType::Long));
  call.num_steps = T;
  call.num_samples = B;
  call.num_elements = D;
  call.history = int32_t(K);
  return call;
}

}  // namespace parasample
