#include "picard_update/picard_update_check.h"

#include <limits>

namespace parasample {
namespace {

template <typename Real>
void write_residual_as(const PicardUpdate& call, const double* partial, int64_t num_chunks, int64_t longest) {
  Real* residual = static_cast<Real*>(call.residual);
  const Real* scale = static_cast<const Real*>(call.residual_scale);
  const int64_t B = call.num_samples;
  for (int64_t k = 0; k < (call.num_steps + 1) * B; ++k) residual[k] = std::numeric_limits<Real>::infinity();
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = call.begin[b]; i < call.end[b]; ++i) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
        sum += partial[(b * num_chunks + chunk) * longest + i - call.begin[b]];
      }
      residual[(i + 1) * B + b] = Real(double(scale[i + 1]) * sum);
    }
  }
}

}  // namespace

ScalarType real_dtype(const PicardUpdate& call) {
  return call.states.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

PicardUpdate check_picard_update(const PicardUpdateTensors& t, const char* op, int64_t max_history) {
  const Tensor& states = t.states;
  STD_TORCH_CHECK(states.dim() == 3 && states.size(0) >= 1,
                  op, ": states must have shape [T+1, B, D] with T >= 0, found ", shape_of(states),
                  "; flatten the sample to D elements");
  const int64_t T = states.size(0) - 1, B = states.size(1), D = states.size(2);
  STD_TORCH_CHECK(t.state_coef.dim() == 2 && t.state_coef.size(1) >= 1 && t.state_coef.size(1) <= max_history,
                  op, ": state_coef must have shape [T, K] with K = 1 .. ", max_history, ", found ",
                  shape_of(t.state_coef), "; longer histories are for dense_update, which 'auto' takes");
  const int64_t K = t.state_coef.size(1);
  const Checks check(op, states, "states", "states [T+1, B, D] and state_coef [T, K] set T, B, D and K");
  check.shape("anchors", t.anchors, {T + 1, B, D}, "[T+1, B, D]");
  check.shape("outputs", t.outputs, {T, B, D}, "[T, B, D]");
  if (t.noise) check.shape("noise", *t.noise, {T, B, D}, "[T, B, D]");
  check.shape("state_coef", t.state_coef, {T, K}, "[T, K]");
  check.shape("anchor_coef", t.anchor_coef, {T, K}, "[T, K]");
  check.shape("output_coef", t.output_coef, {T, K}, "[T, K]");
  check.shape("noise_coef", t.noise_coef, {T}, "[T]");
  check.shape("x0_coef", t.x0_coef, {T, 2}, "[T, 2]");
  check.shape("residual_scale", t.residual_scale, {T + 1}, "[T+1]");
  check.shape("begin", t.begin, {B}, "[B]");
  check.shape("hold", t.hold, {B}, "[B]");
  check.shape("end", t.end, {B}, "[B]");
  STD_TORCH_CHECK(t.weights.has_value() == t.directions.has_value(),
                  op, ": weights and directions must be given together, found ",
                  t.weights ? "weights" : "directions", " alone; pass both or neither");
  const int64_t R = t.weights && t.weights->dim() == 3 ? t.weights->size(2) : 0;
  if (t.weights) {
    STD_TORCH_CHECK(R >= 1 && R <= kMaxRank, op, ": weights must have shape [T, B, R] with R = 1 .. ",
                    kMaxRank, ", found ", shape_of(*t.weights), "; keep the directions that matter most");
    check.shape("weights", *t.weights, {T, B, R}, "[T, B, R]");
    check.shape("directions", *t.directions, {T, B, R, D}, "[T, B, R, D]");
  }

  PicardUpdate call{};
  call.states = check.rows("states", states);
  STD_TORCH_CHECK((states.stride(0) != 0 || T == 0) && (states.stride(1) != 0 || B <= 1),
                  op, ": states must own each element once, found an expanded view; pass a .clone()");
  call.anchors = check.rows("anchors", t.anchors);
  STD_TORCH_CHECK(call.anchors.dtype == call.states.dtype, op, ": anchors must have the dtype of states (",
                  dtype_name(states.scalar_type()), "), found ", dtype_name(t.anchors.scalar_type()),
                  "; convert it with .to()");
  STD_TORCH_CHECK(call.anchors.data != call.states.data ||
                      (call.anchors.stride_row == call.states.stride_row &&
                       (call.anchors.stride_sample == call.states.stride_sample || B <= 1)),
                  op, ": anchors that start at the memory of states must be the same view; pass states "
                  "itself or a .clone()");
  call.outputs = check.rows("outputs", t.outputs);
  if (t.noise) call.noise = check.rows("noise", *t.noise);
  if (t.directions) {
    call.directions = check.rows("directions", *t.directions);
    call.stride_direction = t.directions->stride(2);
  }

  const ScalarType real = real_dtype(call);
  call.state_coef = check.table("state_coef", t.state_coef, real);
  call.anchor_coef = check.table("anchor_coef", t.anchor_coef, real);
  call.output_coef = check.table("output_coef", t.output_coef, real);
  call.noise_coef = check.table("noise_coef", t.noise_coef, real);
  call.x0_coef = check.table("x0_coef", t.x0_coef, real);
  call.residual_scale = check.table("residual_scale", t.residual_scale, real);
  if (t.weights) call.weights = check.table("weights", *t.weights, real);
  call.begin = static_cast<const int64_t*>(check.table("begin", t.begin, ScalarType::Long));
  call.hold = static_cast<const int64_t*>(check.table("hold", t.hold, ScalarType::Long));
  call.end = static_cast<const int64_t*>(check.table("end", t.end, ScalarType::Long));
  call.num_steps = T;
  call.num_samples = B;
  call.num_elements = D;
  call.history = int32_t(K);
  call.rank = int32_t(R);
  return call;
}

int64_t check_ranges(const PicardUpdate& call, const char* op) {
  int64_t longest = 0;
  for (int64_t b = 0; b < call.num_samples; ++b) {
    const int64_t begin = call.begin[b], hold = call.hold[b], end = call.end[b];
    if (end <= begin) continue;
    STD_TORCH_CHECK(begin >= 0 && end <= call.num_steps, op, ": sample ", b,
                    " must have 0 <= begin < end <= T = ", call.num_steps, ", found begin=", begin, " end=", end,
                    "; clip the window to the trajectory");
    STD_TORCH_CHECK(hold >= begin - 1, op, ": sample ", b, " must have hold >= begin - 1 = ", begin - 1,
                    ", found hold=", hold, "; rows before begin must have been evaluated");
    longest = end - begin > longest ? end - begin : longest;
    if (call.noise.data != nullptr || call.num_elements == 0) continue;
    for (int64_t i = begin; i < end; ++i) {
      const bool noisy = call.states.dtype == DType::kFloat64
                             ? static_cast<const double*>(call.noise_coef)[i] != 0
                             : static_cast<const float*>(call.noise_coef)[i] != 0;
      STD_TORCH_CHECK(!noisy, op, ": noise is None but noise_coef[", i,
                      "] is not zero; pass noise [T, B, D] or zero coefficients");
    }
  }
  return longest;
}
void write_residual(const PicardUpdate& call, const double* partial, int64_t num_chunks, int64_t longest) {
  if (call.states.dtype == DType::kFloat64) {
    write_residual_as<double>(call, partial, num_chunks, longest);
  } else {
    write_residual_as<float>(call, partial, num_chunks, longest);
  }
}

}  // namespace parasample
