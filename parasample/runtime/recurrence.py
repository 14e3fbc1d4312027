"""A table and an update rule on a device, and the scan that applies them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parasample.config import Picard
from parasample.kernels import picard_update
from parasample.plan.table import AffineTable
from parasample.plan.updates import linearised, published, residual_weights


class Recurrence:
    """The coefficients of `parasample.kernels.picard_update` for one run.

    Args:
        table: the scheduler's recurrence, T steps.
        config: names the update rule and the stopping rule.
        like: a tensor of the trajectory's dtype and device, [T+1, B, D]; residuals are means over D.
    """

    def __init__(self, table: AffineTable, config: Picard, like: Tensor) -> None:
        self.rule = published(table) if config.update == "published" else linearised(table, _variance(config))

        def on_device(values: Sequence[object]) -> Tensor:
            return torch.tensor(values, dtype=like.dtype, device=like.device)

        self.slope = on_device(self.rule.slope)
        unscaled = all(scale == 1 for scale in table.input_scale)
        self.input_scale = None if unscaled else on_device(table.input_scale)
        weights = residual_weights(table, config.stopping)
        self.residual_scale = on_device([weight / like.shape[-1] for weight in weights])
        self.x0_coef = on_device(tuple(zip(table.x0_state, table.x0_output, strict=True)))
        self._coefficients = (
            on_device(self.rule.state),
            on_device(self.rule.anchor),
            on_device(self.rule.output),
            on_device(table.noise),
            self.x0_coef,
            self.residual_scale,
        )

    def scan(
        self,
        states: Tensor,
        anchors: Tensor,
        outputs: Tensor,
        noise: Tensor | None,
        bounds: Tensor,
        weights: Tensor | None = None,
        directions: Tensor | None = None,
    ) -> Tensor:
        """Update `states` in place; `bounds` int64 [3, B]: begin, hold and end of each sample's scan."""
        ranges = bounds[0], bounds[1], bounds[2]
        return picard_update(
            states,
            anchors,
            outputs,
            noise,
            *self._coefficients,
            *ranges,
            weights=weights,
            directions=directions,
        )


def _variance(config: Picard) -> float:
    return 1.0 if config.update == "v" else config.prior_variance
