// The CPU kernel of picard_update. CMake compiles this file once per instruction set, with PARASAMPLE_ISA
// naming the variant; loops are plain so that the compiler vectorises them for each.
//
// One work item is a chunk of D of one sample. It walks the rows of the scan once, keeping the history it
// needs (new states, old anchors, outputs, all in the computed type) in a few chunk-sized blocks that stay in
// the first-level cache. Each row is a weighted sum of N such blocks, N known at compile time.
#include "common/cpu_convert.h"
#include "common/cpu_isa.h"
#include "picard_update/picard_update.h"

namespace parasample {
namespace {

constexpr int64_t kMaxChunk = 1024;              // = cpu_chunk(1)
constexpr int kMaxTerms = 3 * kMaxHistory + 1;   // state, anchor, output per history entry, and noise

template <typename Real>
struct Terms {
  int count = 0;
  Real coef[kMaxTerms];
  const Real* block[kMaxTerms];

  // A term whose coefficient is zero is not read at all.
  void add(Real weight, const Real* source) {
    if (weight == Real(0)) return;
    coef[count] = weight;
    block[count++] = source;
  }
};

template <typename Real, int N>
struct WeightedSum {
  __attribute__((always_inline)) static Real at(const Real* coef, const Real* const* block, int64_t j) {
    return WeightedSum<Real, N - 1>::at(coef, block, j) + coef[N - 1] * block[N - 1][j];
  }
};
template <typename Real>
struct WeightedSum<Real, 0> {
  __attribute__((always_inline)) static Real at(const Real*, const Real* const*, int64_t) { return Real(0); }
};

// Stored type == computed type: one pass reads the old anchor, keeps a copy, stores the new state (possibly over
// that very anchor) and sums the squared change.
template <typename Real, int N>
Real combine_and_store(const Terms<Real>& terms, Real* to, const Real* old, Real* old_copy, int64_t count) {
  Real coef[N > 0 ? N : 1];
  const Real* block[N > 0 ? N : 1];
  for (int t = 0; t < N; ++t) coef[t] = terms.coef[t], block[t] = terms.block[t];
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) {
    const Real previous = old[j];
    const Real value = WeightedSum<Real, N>::at(coef, block, j);
    old_copy[j] = previous;
    to[j] = value;
    const Real change = value - previous;
    sum += change * change;
  }
  return sum;
}

template <typename Real, int N>
Real combine_only(const Terms<Real>& terms, Real* to, const Real*, Real*, int64_t count) {
  Real coef[N > 0 ? N : 1];
  const Real* block[N > 0 ? N : 1];
  for (int t = 0; t < N; ++t) coef[t] = terms.coef[t], block[t] = terms.block[t];
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) to[j] = WeightedSum<Real, N>::at(coef, block, j);
  return 0;
}

template <typename Real>
using Combine = Real (*)(const Terms<Real>&, Real*, const Real*, Real*, int64_t);

#define PARASAMPLE_TABLE(f)                                                                              \
  {f<Real, 0>,  f<Real, 1>,  f<Real, 2>,  f<Real, 3>,  f<Real, 4>,  f<Real, 5>,  f<Real, 6>,  f<Real, 7>, \
   f<Real, 8>,  f<Real, 9>,  f<Real, 10>, f<Real, 11>, f<Real, 12>, f<Real, 13>, f<Real, 14>, f<Real, 15>, \
   f<Real, 16>}
template <typename Real>
constexpr Combine<Real> kCombineAndStore[kMaxTerms + 1] = PARASAMPLE_TABLE(combine_and_store);
template <typename Real>
constexpr Combine<Real> kCombineOnly[kMaxTerms + 1] = PARASAMPLE_TABLE(combine_only);

template <typename Real>
constexpr DType kComputed = DType::kFloat32;
template <>
constexpr DType kComputed<double> = DType::kFloat64;

// The chunk's view of one call: where its rows are, and the cached blocks of its history.
template <typename Real>
struct Scan {
  const PicardUpdate& call;
  const int64_t sample, first, count, hold;
  const int depth;
  const bool stored_exactly;  // states are kept as Real: their rows serve as history blocks
  alignas(64) Real state_blocks[kMaxHistory + 1][kMaxChunk];
  alignas(64) Real anchor_blocks[kMaxHistory + 1][kMaxChunk];
  alignas(64) Real output_blocks[kMaxHistory][kMaxChunk];
  const Real* output_rows[kMaxHistory];  // where each output is: its own row, or its block
  alignas(64) Real noise_block[kMaxChunk];
  alignas(64) Real held_x0[kMaxChunk];

  Scan(const PicardUpdate& c, int64_t sample_index, int64_t chunk)
      : call(c), sample(sample_index), first(chunk * cpu_chunk(c.history)),
        count(shorter(cpu_chunk(c.history), c.num_elements - first)), hold(c.hold[sample_index]),
        depth(c.history), stored_exactly(c.states.dtype == kComputed<Real>) {}

  static int64_t shorter(int64_t a, int64_t b) { return a < b ? a : b; }

  int64_t offset(const Rows& rows, int64_t row) const {
    return row * rows.stride_row + sample * rows.stride_sample + first;
  }
  // The row itself where it is stored as Real, else a converted copy in `block`.
  const Real* read(const Rows& rows, int64_t row, Real* block, int64_t within_row = 0) const {
    const int64_t at = offset(rows, row) + within_row;
    if (rows.dtype == kComputed<Real>) return static_cast<const Real*>(rows.data) + at;
    load_row(block, rows.data, rows.dtype, at, count);
    return block;
  }

  Real* anchor(int64_t row) { return anchor_blocks[row % (depth + 1)]; }
  Real* state_block(int64_t row) { return state_blocks[row % (depth + 1)]; }
  const Real* state(int64_t row) {
    if (!stored_exactly) return state_block(row);
    return static_cast<const Real*>(call.states.data) + offset(call.states, row);
  }
  const Real* output(int64_t row) const { return output_rows[row % depth]; }
  const Real* x0_coef(int64_t row) const { return static_cast<const Real*>(call.x0_coef) + 2 * row; }

  void load_anchor(int64_t row) {
    load_row(anchor(row), call.anchors.data, call.anchors.dtype, offset(call.anchors, row), count);
  }
  void load_output(int64_t row) {
    Real* block = output_blocks[row % depth];
    const Real* sum = read(call.outputs, row, block);
    const Real* weights = static_cast<const Real*>(call.weights) + (row * call.num_samples + sample) * call.rank;
    for (int r = 0; r < call.rank; ++r) {
      if (weights[r] == Real(0)) continue;
      // noise_block is free until terms_of reads the noise of this row.
      add_scaled(block, sum, weights[r], read(call.directions, row, noise_block, r * call.stride_direction));
      sum = block;
    }
    output_rows[row % depth] = sum;
  }
  void add_scaled(Real* to, const Real* sum, Real weight, const Real* direction) const {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) to[j] = sum[j] + weight * direction[j];
  }

  // History at or before the first row: read as stored, before anything is overwritten. A held prediction needs
  // row begin - 1 even where the recurrence itself is not that deep.
  void load_history(int64_t begin) {
    const int64_t num_rows = hold < begin && depth < 2 ? 2 : depth;
    for (int64_t row = begin; row >= 0 && row > begin - num_rows; --row) {
      if (!stored_exactly) {
        load_row(state_block(row), call.states.data, call.states.dtype, offset(call.states, row), count);
      }
      if (row > hold) continue;
      load_anchor(row);
      if (row < begin) load_output(row);
    }
    if (hold < 0) {
      for (int64_t j = 0; j < count; ++j) held_x0[j] = 0;
    } else if (hold < begin) {
      set_held_x0(anchor(hold), output(hold));
    }
  }
  void set_held_x0(const Real* anchor_row, const Real* output_row) {
    const Real u = x0_coef(hold)[0], w = x0_coef(hold)[1];
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) held_x0[j] = u * anchor_row[j] + w * output_row[j];
  }

  // Makes output(row) readable: read, or for a row beyond hold implied by the held data prediction.
  void prepare_output(int64_t row) {
    if (row <= hold) {
      load_output(row);
      if (row == hold) set_held_x0(anchor(row), output(row));
      return;
    }
    const Real u = x0_coef(row)[0], w = x0_coef(row)[1];
    const Real* value = state(row);
    Real* to = output_blocks[row % depth];
    output_rows[row % depth] = to;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) to[j] = (held_x0[j] - u * value[j]) / w;
  }

  Terms<Real> terms_of(int64_t row) {
    Terms<Real> terms;
    for (int k = 0; k < depth && k <= row; ++k) {
      const int64_t source = row - k, index = row * depth + k;
      terms.add(static_cast<const Real*>(call.state_coef)[index], state(source));
      terms.add(static_cast<const Real*>(call.anchor_coef)[index], source > hold ? state(source) : anchor(source));
      terms.add(static_cast<const Real*>(call.output_coef)[index], output(source));
    }
    const Real noise_coef = static_cast<const Real*>(call.noise_coef)[row];
    if (noise_coef != Real(0)) terms.add(noise_coef, read(call.noise, row, noise_block));
    return terms;
  }

  // Computes and stores row + 1; returns its sum of squared changes.
  Real advance(int64_t row) {
    prepare_output(row);
    const Terms<Real> terms = terms_of(row);
    const int64_t at = offset(call.states, row + 1);
    if (stored_exactly) {
      const Real* old = static_cast<const Real*>(call.anchors.data) + offset(call.anchors, row + 1);
      Real* to = static_cast<Real*>(call.states.data) + at;
      return kCombineAndStore<Real>[terms.count](terms, to, old, anchor(row + 1), count);
    }
    load_anchor(row + 1);
    kCombineOnly<Real>[terms.count](terms, state_block(row + 1), nullptr, nullptr, count);
    return store(static_cast<uint16_t*>(call.states.data) + at, state_block(row + 1), anchor(row + 1));
  }
  float store(uint16_t* to, const float* value, const float* old) const {
    return call.states.dtype == DType::kBFloat16 ? store_bfloat16(to, value, old, count)
                                                 : store_float16(to, value, old, count);
  }
  // double is computed only for states stored as double, which combine_and_store handles.
  double store(uint16_t*, const double*, const double*) const { return 0; }
};

template <typename Real>
void run(const PicardUpdate& call, int64_t sample, int64_t chunk, double* partial) {
  const int64_t begin = call.begin[sample], end = call.end[sample];
  if (end <= begin) return;
  Scan<Real> scan(call, sample, chunk);
  scan.load_history(begin);
  for (int64_t row = begin; row < end; ++row) partial[row - begin] = double(scan.advance(row));
}

}  // namespace

void PARASAMPLE_VARIANT(picard_update)(const PicardUpdate& call, int64_t sample, int64_t chunk, double* partial) {
  if (call.states.dtype == DType::kFloat64) {
    run<double>(call, sample, chunk, partial);
  } else {
    run<float>(call, sample, chunk, partial);
  }
}

}  // namespace parasample
