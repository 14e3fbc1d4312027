// The CPU kernel of gather_inputs. CMake compiles this file once per instruction set, with PARASAMPLE_ISA
// naming the variant. One work item is a chunk of one gathered row: read and converted once, then copied from
// the cache.
#include "common/cpu_convert.h"
#include "common/cpu_isa.h"
#include "gather_inputs/gather_inputs.h"

namespace parasample {
namespace {

int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

template <typename Real>
void scaled_to_result(const GatherInputs& call, int64_t from, int64_t to, int64_t count, Real scale) {
  constexpr DType computed = sizeof(Real) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;
  alignas(64) Real read_block[kGatherChunk], scaled_block[kGatherChunk];
  const Real* values = read_block;
  if (call.states.dtype == computed) {
    values = static_cast<const Real*>(call.states.data) + from;
  } else {
    load_row(read_block, call.states.data, call.states.dtype, from, count);
  }
  const bool as_computed = call.result.dtype == computed;
  Real* __restrict scaled = as_computed ? static_cast<Real*>(call.result.data) + to : scaled_block;
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) scaled[j] = scale * values[j];
  if (!as_computed) store_row(call.result.data, call.result.dtype, to, scaled_block, count);
}

}  // namespace

void PARASAMPLE_VARIANT(gather_inputs)(const GatherInputs& call, int64_t item, int64_t chunk) {
  const int64_t step = call.steps[item], first = chunk * kGatherChunk;
  const int64_t left = call.num_elements - first, count = left < kGatherChunk ? left : kGatherChunk;
  const int64_t from = step * call.states.stride_row + call.samples[item] * call.states.stride_sample + first;
  const int64_t size = bytes_of(call.result.dtype);
  char* result = static_cast<char*>(call.result.data);
  char* written = result + (item * call.num_elements + first) * size;
  if (call.scale == nullptr && call.states.dtype == call.result.dtype) {
    std::memcpy(written, static_cast<const char*>(call.states.data) + from * size, size_t(count * size));
  } else if (call.states.dtype == DType::kFloat64) {
    const double scale = call.scale != nullptr ? static_cast<const double*>(call.scale)[step] : 1;
    scaled_to_result<double>(call, from, item * call.num_elements + first, count, scale);
  } else {
    const float scale = call.scale != nullptr ? static_cast<const float*>(call.scale)[step] : 1;
    scaled_to_result<float>(call, from, item * call.num_elements + first, count, scale);
  }
  for (int64_t copy = 1; copy < call.copies; ++copy) {
    const int64_t row = copy * call.num_items + item;
    std::memcpy(result + (row * call.num_elements + first) * size, written, size_t(count * size));
  }
}

}  // namespace parasample
