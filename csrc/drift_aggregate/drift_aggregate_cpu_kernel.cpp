// The CPU kernels of drift_aggregate. CMake compiles this file once per instruction set, with PARASAMPLE_ISA
// naming the variant; loops are plain so that the compiler vectorises them for each.
//
// One work item is a chunk of one row. Rows stored in the computed type are read where they are, others by
// way of blocks that stay in the first-level cache.
#include <limits>

#include "common/cpu_convert.h"
#include "common/cpu_isa.h"
#include "drift_aggregate/drift_aggregate.h"

namespace parasample {
namespace {

template <typename Real>
constexpr Real kInfinity = std::numeric_limits<Real>::infinity();

template <typename Real>
const Real* conversion_of(const DriftAggregate& call, int64_t row) {
  return static_cast<const Real*>(call.conversion) + kConversion * row;
}

template <typename Real>
struct Chunk {
  const DriftAggregate& call;
  const int64_t row, first, count;
  alignas(64) Real conditional_block[kDriftChunk];
  alignas(64) Real unconditional_block[kDriftChunk];
  alignas(64) Real states_block[kDriftChunk];

  Chunk(const DriftAggregate& c, int64_t row_index, int64_t chunk)
      : call(c),
        row(row_index),
        first(chunk * kDriftChunk),
        count(c.num_elements - first < kDriftChunk ? c.num_elements - first : kDriftChunk) {}

  const Real* read(const Rows& rows, Real* block) const {
    constexpr DType computed = sizeof(Real) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;
    const int64_t at = row * rows.stride_row + first;
    if (rows.dtype == computed) return static_cast<const Real*>(rows.data) + at;
    load_row(block, rows.data, rows.dtype, at, count);
    return block;
  }
  Real number(const void* table) const { return static_cast<const Real*>(table)[row]; }
};

template <typename Real>
void moments(const DriftAggregate& call, int64_t row, int64_t index, DriftMoments* to) {
  Chunk<Real> chunk(call, row, index);
  const Real* conditional = chunk.read(call.conditional, chunk.conditional_block);
  const Real* unconditional = chunk.read(call.unconditional, chunk.unconditional_block);
  const Real guidance = chunk.number(call.guidance);
  const int64_t count = chunk.count;
  Real origin_conditional, origin_guided;
  load_row(&origin_conditional, call.conditional.data, call.conditional.dtype,
           row * call.conditional.stride_row, 1);
  load_row(&origin_guided, call.unconditional.data, call.unconditional.dtype,
           row * call.unconditional.stride_row, 1);
  origin_guided += guidance * (origin_conditional - origin_guided);
  Real* guided = chunk.states_block;  // states are not read here
  Real sum_conditional = 0, sum_guided = 0;
#pragma omp simd reduction(+ : sum_conditional, sum_guided)
  for (int64_t j = 0; j < count; ++j) {
    guided[j] = unconditional[j] + guidance * (conditional[j] - unconditional[j]) - origin_guided;
    sum_conditional += conditional[j] - origin_conditional;
    sum_guided += guided[j];
  }
  const Real mean_conditional = sum_conditional / Real(count), mean_guided = sum_guided / Real(count);
  Real squares_conditional = 0, squares_guided = 0;
#pragma omp simd reduction(+ : squares_conditional, squares_guided)
  for (int64_t j = 0; j < count; ++j) {
    const Real c = conditional[j] - origin_conditional - mean_conditional, g = guided[j] - mean_guided;
    squares_conditional += c * c;
    squares_guided += g * g;
  }
  *to = {double(mean_conditional), double(squares_conditional), double(mean_guided), double(squares_guided)};
}

template <typename Real, bool Guided, bool Converted, bool Clipped, bool Cut>
void convert(const DriftAggregate& call, int64_t row, int64_t index, Real factor) {
  Chunk<Real> chunk(call, row, index);
  const Real* conditional = chunk.read(call.conditional, chunk.conditional_block);
  const Real* unconditional = Guided ? chunk.read(call.unconditional, chunk.unconditional_block) : nullptr;
  const Real* states = Converted ? chunk.read(call.states, chunk.states_block) : nullptr;
  const Real guidance = Guided ? chunk.number(call.guidance) : Real(0);
  Real coef[kConversion] = {};
  if (Converted) {
    for (int k = 0; k < kConversion; ++k) coef[k] = conversion_of<Real>(call, row)[k];
  }
  Real* __restrict to = static_cast<Real*>(call.result) + row * call.num_elements + chunk.first;
  const int64_t count = chunk.count;
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    Real m = conditional[j];
    if (Guided) m = factor * (unconditional[j] + guidance * (m - unconditional[j]));
    if (Converted) {
      const Real data = coef[kInState] * states[j] + coef[kInOutput] * m;
      Real clipped = data;
      if (Clipped) {
        clipped = data < coef[kLow] ? coef[kLow] : data;  // comparisons with NaN are false: NaN stays
        clipped = clipped > coef[kHigh] ? coef[kHigh] : clipped;
      }
      m = coef[kOutState] * states[j] + coef[kOutData] * clipped;
      if (Cut) m += coef[kOutCut] * (data - clipped);
    }
    to[j] = m;
  }
}

template <typename Real>
void convert_any(const DriftAggregate& call, int64_t row, int64_t chunk, Real factor) {
  const bool guided = call.unconditional.data != nullptr;
  if (call.states.data == nullptr) {
    guided ? convert<Real, true, false, false, false>(call, row, chunk, factor)
           : convert<Real, false, false, false, false>(call, row, chunk, factor);
    return;
  }
  const Real* coef = conversion_of<Real>(call, row);
  const bool clipped = coef[kLow] > -kInfinity<Real> || coef[kHigh] < kInfinity<Real>;
  if (!clipped) {
    guided ? convert<Real, true, true, false, false>(call, row, chunk, factor)
           : convert<Real, false, true, false, false>(call, row, chunk, factor);
  } else if (coef[kOutCut] == Real(0)) {
    guided ? convert<Real, true, true, true, false>(call, row, chunk, factor)
           : convert<Real, false, true, true, false>(call, row, chunk, factor);
  } else {
    guided ? convert<Real, true, true, true, true>(call, row, chunk, factor)
           : convert<Real, false, true, true, true>(call, row, chunk, factor);
  }
}

}  // namespace

void PARASAMPLE_VARIANT(drift_moments)(const DriftAggregate& call, int64_t row, int64_t chunk,
                                       DriftMoments* to) {
  call.is_double ? moments<double>(call, row, chunk, to) : moments<float>(call, row, chunk, to);
}

void PARASAMPLE_VARIANT(drift_convert)(const DriftAggregate& call, int64_t row, int64_t chunk,
                                       double factor) {
  call.is_double ? convert_any<double>(call, row, chunk, factor)
                 : convert_any<float>(call, row, chunk, float(factor));
}

}  // namespace parasample
