// Checks the arguments of parasample::drift_aggregate and turns them into a DriftAggregate.
#pragma once

#include <optional>

#include "common/checks.h"
#include "drift_aggregate/drift_aggregate.h"

namespace parasample {

struct DriftAggregateTensors {
  Tensor conditional;
  std::optional<Tensor> unconditional, guidance, rescale, states, conversion;
};

// Shapes, dtypes, layout and devices; reads no tensor data. `result` is left null.
DriftAggregate check_drift_aggregate(const DriftAggregateTensors& tensors);

}  // namespace parasample
