#include "drift_aggregate/drift_aggregate_check.h"

namespace parasample {
namespace {

struct Arguments {
  const Checks& check;
  const int64_t n, D;

  Rows matrix(const char* name, const std::optional<Tensor>& tensor) const {
    if (!tensor) return {};
    check.shape(name, *tensor, {n, D}, "[n, D]");
    return check.rows(name, *tensor);
  }
  const void* column(const char* name, const std::optional<Tensor>& tensor, ScalarType real) const {
    if (!tensor) return nullptr;
    check.shape(name, *tensor, {n}, "[n]");
    return check.table(name, *tensor, real);
  }
  const void* conversion(const char* name, const std::optional<Tensor>& tensor, ScalarType real) const {
    if (!tensor) return nullptr;
    check.shape(name, *tensor, {n, kConversion}, "[n, 7]");
    return check.table(name, *tensor, real);
  }
};

}  // namespace

DriftAggregate check_drift_aggregate(const DriftAggregateTensors& t) {
  STD_TORCH_CHECK(t.conditional.dim() == 2, "drift_aggregate: conditional must have shape [n, D], found ",
                  shape_of(t.conditional), "; flatten each output to D elements");
  STD_TORCH_CHECK(
      t.unconditional.has_value() == t.guidance.has_value(),
      "drift_aggregate: unconditional and guidance must come together, found one alone; pass both or "
      "neither");
  STD_TORCH_CHECK(
      !t.rescale || t.unconditional,
      "drift_aggregate: rescale must have unconditional beside it, found None; pass unconditional and "
      "guidance, or no rescale");
  STD_TORCH_CHECK(
      t.states.has_value() == t.conversion.has_value(),
      "drift_aggregate: conversion and states must come together, found one alone; pass both or neither");
  const Checks check("drift_aggregate", t.conditional, "conditional", "conditional [n, D] sets n and D");
  const Arguments arguments{check, t.conditional.size(0), t.conditional.size(1)};

  DriftAggregate call{};
  call.num_rows = arguments.n;
  call.num_elements = arguments.D;
  call.conditional = check.rows("conditional", t.conditional);
  call.unconditional = arguments.matrix("unconditional", t.unconditional);
  STD_TORCH_CHECK(!t.unconditional || call.unconditional.dtype == call.conditional.dtype,
                  "drift_aggregate: unconditional must have the dtype of conditional (",
                  dtype_name(t.conditional.scalar_type()), "), found ",
                  dtype_name(t.unconditional.value_or(t.conditional).scalar_type()),
                  "; convert it with .to()");
  call.states = arguments.matrix("states", t.states);
  call.is_double =
      call.conditional.dtype == DType::kFloat64 || (t.states && call.states.dtype == DType::kFloat64);
  const ScalarType real = call.is_double ? ScalarType::Double : ScalarType::Float;
  call.guidance = arguments.column("guidance", t.guidance, real);
  call.rescale = arguments.column("rescale", t.rescale, real);
  call.conversion = arguments.conversion("conversion", t.conversion, real);
  return call;
}

}  // namespace parasample
