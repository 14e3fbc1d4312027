"""Model outputs as the tables of clipping schedulers take them: made from the clipped data prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from parasample.kernels import drift_aggregate


@dataclass(frozen=True)
class ClippedOutput:
    """y = clipped clip(D) + unclipped D with D = x0_state x + x0_output m, per item of a batch.

    Between two bounds it is one pass over memory, `drift_aggregate`; dynamic thresholding needs a quantile of
    each item first, a sort, and stays a chain of torch operations.

    The weights are 1 and 0 for schedulers that use the clipped prediction alone. DDIM without
    `use_clipped_model_output` steps along the unclipped noise as well, which in this form is a weight above 1
    and one below 0 that add up to 1: y is D wherever nothing clips.

    Attributes:
        x0_state, x0_output, clipped, unclipped: [T] float64 on the CPU.
        clip: the scheduler's own clipping of D: (lowest, highest), the same for all steps, or what its
            `_threshold_sample` makes of D [n, ...], each item by itself (dynamic thresholding, arXiv
            2205.11487, section 2.3).
    """

    x0_state: Tensor
    x0_output: Tensor
    clipped: Tensor
    unclipped: Tensor
    clip: tuple[float, float] | Callable[[Tensor], Tensor]
    _cache: dict[tuple[torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __call__(self, output: Tensor, state: Tensor, steps: Tensor) -> Tensor:
        """y [n, ...] of raw outputs [n, ...] at states [n, ...] of table steps [n] (int64).

        Made and returned in float32, or float64 where an argument has it: large weights magnify rounding.
        """
        dtype = torch.float64 if torch.float64 in (output.dtype, state.dtype) else torch.float32
        conversion = self._conversion(output.device, dtype).index_select(0, steps.to(output.device))
        if not callable(self.clip):
            states = state.flatten(1)
            return drift_aggregate(output.flatten(1), states=states, conversion=conversion).view(output.shape)
        p, q, _, joint, cut, _, _ = conversion.reshape(-1, 7, *(1,) * (output.ndim - 1)).unbind(1)
        prediction = p * state.to(dtype) + q * output.to(dtype)
        clipped = self.clip(prediction)
        return joint * clipped + cut * (prediction - clipped) if self._mixes else clipped

    @cached_property
    def _mixes(self) -> bool:
        return bool(self.unclipped.any())

    def _conversion(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """[T, 7], rows as of `drift_aggregate`; made once per device and dtype.

        y = (clipped + unclipped) clip(D) + unclipped (D - clip(D)): the difference is exactly 0 where nothing
        clips, however large the weights that it stands for.
        """
        key = (device, dtype)
        if key not in self._cache:
            bounds = (-torch.inf, torch.inf) if callable(self.clip) else self.clip
            zero = torch.zeros_like(self.clipped)
            low, high = (torch.full_like(zero, bound) for bound in bounds)
            weights = zero, self.clipped + self.unclipped, self.unclipped
            rows = torch.stack((self.x0_state, self.x0_output, *weights, low, high), 1)
            self._cache[key] = rows.to(device, dtype)
        return self._cache[key]
