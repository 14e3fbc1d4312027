// The CPU kernel of dense_update, once per instruction set as picard_update_cpu_kernel.cpp.
//
// One work item is a chunk of D of one sample: a triangular product of its coefficients with the chunk's states,
// anchors and outputs, each row of it as soon as the rows before are known. The chunk's rows are converted once into
// a workspace; a row of the product takes eight of them at a time.
#include "common/cpu_convert.h"
#include "common/cpu_isa.h"
#include "dense_update/dense_update.h"

namespace parasample {
namespace {

constexpr int kTogether = 8;

template <typename Real, int N>
void add_terms(Real* __restrict sum, const Real* coef, const Real* const* block, int64_t count) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    Real value = sum[j];
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) value += coef[t] * block[t][j];
    sum[j] = value;
  }
}

// Terms wait until there are eight of them. One whose coefficient is zero is not read at all.
template <typename Real>
struct Sum {
  Real* to;
  int64_t count;
  int waiting = 0;
  Real coef[kTogether];
  const Real* block[kTogether];

  void add(Real weight, const Real* source) {
    if (weight == Real(0)) return;
    coef[waiting] = weight;
    block[waiting++] = source;
    if (waiting == kTogether) flush();
  }
  void flush() {
    switch (waiting) {
      case 8: add_terms<Real, 8>(to, coef, block, count); break;
      case 7: add_terms<Real, 7>(to, coef, block, count); break;
      case 6: add_terms<Real, 6>(to, coef, block, count); break;
      case 5: add_terms<Real, 5>(to, coef, block, count); break;
      case 4: add_terms<Real, 4>(to, coef, block, count); break;
      case 3: add_terms<Real, 3>(to, coef, block, count); break;
      case 2: add_terms<Real, 2>(to, coef, block, count); break;
      case 1: add_terms<Real, 1>(to, coef, block, count); break;
      default: break;
    }
    waiting = 0;
  }
};

template <typename Real>
struct Triangle {
  const PicardUpdate& call;
  const int64_t sample, first, count, begin, end, hold, low, rows;
  Real* const workspace;

  Triangle(const PicardUpdate& c, int64_t sample_index, int64_t chunk, Real* memory)
      : call(c), sample(sample_index), first(chunk * kDenseChunk),
        count(c.num_elements - first < kDenseChunk ? c.num_elements - first : kDenseChunk), begin(c.begin[sample]),
        end(c.end[sample]), hold(c.hold[sample] < end - 1 ? c.hold[sample] : end - 1),
        // Row begin - 1 is needed by a held prediction even where the recurrence itself is not that deep.
        low(begin > reach() ? begin - reach() : 0), rows(end - low + 1), workspace(memory) {}

  int64_t reach() const { return call.history > 2 ? call.history - 1 : 1; }
  Real* block(int64_t kind, int64_t row) const { return workspace + (kind * rows + row - low) * kDenseChunk; }
  Real* state(int64_t row) const { return block(0, row); }
  Real* anchor(int64_t row) const { return row > hold ? state(row) : block(1, row); }
  Real* output(int64_t row) const { return block(2, row); }
  Real* spare(int index) const { return workspace + (3 * rows + index) * kDenseChunk; }
  const Real* table(const void* data) const { return static_cast<const Real*>(data); }

  int64_t offset(const Rows& of, int64_t row) const {
    return row * of.stride_row + sample * of.stride_sample + first;
  }
  void load(Real* to, const Rows& from, int64_t row) const {
    load_row(to, from.data, from.dtype, offset(from, row), count);
  }
  void load_known() const {
    for (int64_t row = low; row <= begin; ++row) load(state(row), call.states, row);
    for (int64_t row = low; row <= hold; ++row) {
      load(anchor(row), call.anchors, row);
      load(output(row), call.outputs, row);
    }
  }
  // The output that keeps the data prediction of the last evaluated row.
  void hold_output(int64_t row, const Real* held_x0) const {
    const Real u = table(call.x0_coef)[2 * row], w = table(call.x0_coef)[2 * row + 1];
    const Real* value = state(row);
    Real* to = output(row);
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) to[j] = (held_x0[j] - u * value[j]) / w;
  }
  void set_held_x0(Real* held_x0) const {
    if (hold < 0) {
      for (int64_t j = 0; j < count; ++j) held_x0[j] = 0;
      return;
    }
    const Real u = table(call.x0_coef)[2 * hold], w = table(call.x0_coef)[2 * hold + 1];
    const Real *xa = anchor(hold), *m = output(hold);
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) held_x0[j] = u * xa[j] + w * m[j];
  }

  void solve(int64_t row) const {
    Real* to = state(row + 1);
    for (int64_t j = 0; j < count; ++j) to[j] = 0;
    Sum<Real> sum{to, count};
    for (int64_t source = row; source >= low && source > row - call.history; --source) {
      const int64_t index = row * call.history + row - source;
      sum.add(table(call.state_coef)[index], state(source));
      sum.add(table(call.anchor_coef)[index], anchor(source));
      sum.add(table(call.output_coef)[index], output(source));
    }
    const Real noise_coef = table(call.noise_coef)[row];
    if (noise_coef != Real(0)) {
      load(spare(1), call.noise, row);
      sum.add(noise_coef, spare(1));
    }
    sum.flush();
  }
  // Rounds and stores a solved row; its sum of squared changes.
  double store(int64_t row) const {
    Real* old = spare(1);
    load(old, call.anchors, row);
    const Real* value = state(row);
    const int64_t at = offset(call.states, row);
    if constexpr (sizeof(Real) == sizeof(float)) {
      uint16_t* to = static_cast<uint16_t*>(call.states.data) + at;
      if (call.states.dtype == DType::kBFloat16) return double(store_bfloat16(to, value, old, count));
      if (call.states.dtype == DType::kFloat16) return double(store_float16(to, value, old, count));
    }
    Real* to = static_cast<Real*>(call.states.data) + at;
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) {
      to[j] = value[j];
      sum += (value[j] - old[j]) * (value[j] - old[j]);
    }
    return double(sum);
  }
};

template <typename Real>
void run(const PicardUpdate& call, int64_t sample, int64_t chunk, void* workspace, double* partial) {
  if (call.end[sample] <= call.begin[sample]) return;
  const Triangle<Real> triangle(call, sample, chunk, static_cast<Real*>(workspace));
  Real* held_x0 = triangle.spare(0);
  triangle.load_known();
  triangle.set_held_x0(held_x0);
  for (int64_t row = triangle.begin; row < triangle.end; ++row) {
    if (row > triangle.hold) triangle.hold_output(row, held_x0);
    triangle.solve(row);
    partial[row - triangle.begin] = triangle.store(row + 1);
  }
}

}  // namespace

void PARASAMPLE_VARIANT(dense_update)(const PicardUpdate& call, int64_t sample, int64_t chunk, void* workspace,
                                      double* partial) {
  if (call.states.dtype == DType::kFloat64) {
    run<double>(call, sample, chunk, workspace, partial);
  } else {
    run<float>(call, sample, chunk, workspace, partial);
  }
}

}  // namespace parasample
