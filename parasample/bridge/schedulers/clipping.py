"""Turning raw model outputs into the clipped data predictions that a clipping scheduler's table is written
in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClippedOutput:
    """y = weight clip(D) + (1 - weight) D with D = x0_state x + x0_output m, per item of a batch.

    weight is 1 for schedulers that only use the clipped prediction. DDIM without `use_clipped_model_output`
    steps along the unclipped noise as well, which in this form is a weight above 1; y is D wherever nothing
    clips.

    Attributes:
        x0_state, x0_output, weight: [T] float64 on the CPU.
        clip: the scheduler's own clipping of D [n, ...], each item by itself: a clamp or its
            `_threshold_sample` (dynamic thresholding, arXiv 2205.11487, section 2.3).
    """

    x0_state: Tensor
    x0_output: Tensor
    weight: Tensor
    clip: Callable[[Tensor], Tensor]
    _cache: dict[tuple[torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __call__(self, output: Tensor, state: Tensor, steps: Tensor) -> Tensor:
        """y [n, ...] of raw outputs [n, ...] at states [n, ...] of table steps [n] (int64).

        Computed and returned in float32, or float64 where an argument has it: a weight above 1 magnifies
        rounding.
        """
        dtype = torch.promote_types(torch.promote_types(output.dtype, state.dtype), torch.float32)
        coefficients = self._coefficients(output.device, dtype)[:, steps.to(output.device)]
        p, q, weight = coefficients.reshape(3, -1, *(1,) * (output.ndim - 1))  # [n, 1, ...] each
        prediction = p * state.to(dtype) + q * output.to(dtype)
        clipped = self.clip(prediction)
        if bool((self.weight == 1).all()):
            return clipped
        return prediction + weight * (clipped - prediction)

    def _coefficients(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """[3, T] of (x0_state, x0_output, weight), moved once per device and dtype."""
        key = (device, dtype)
        if key not in self._cache:
            self._cache[key] = torch.stack((self.x0_state, self.x0_output, self.weight)).to(device, dtype)
        return self._cache[key]
