"""Schedulers that clip their data prediction: a table in terms of the clipped one, and how to make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from parasample.bridge.schedulers.intercept import Unreadable

# A sum of coefficients this much smaller than its terms is 0; the smallest of 1000 real steps leaves 1e-3.
_VANISHING = 1e-4


@dataclass(frozen=True)
class Clip:
    """How the scheduler clips its data prediction: between two bounds, or by `_threshold_sample` (None)."""

    bounds: tuple[Any, Any] | None


@dataclass(frozen=True)
class ClippedOutput:
    """y = clipped clip(D) + unclipped D with D = x0_state x + x0_output m, per item of a batch.

    The weights are 1 and 0 for schedulers that use the clipped prediction alone. DDIM without
    `use_clipped_model_output` steps along the unclipped noise as well, which in this form is a weight above 1
    and one below 0 that add up to 1: y is D wherever nothing clips.

    Attributes:
        x0_state, x0_output, clipped, unclipped: [T] float64 on the CPU.
        clip: the scheduler's own clipping of D [n, ...], each item by itself: a clamp or its
            `_threshold_sample` (dynamic thresholding, arXiv 2205.11487, section 2.3).
    """

    x0_state: Tensor
    x0_output: Tensor
    clipped: Tensor
    unclipped: Tensor
    clip: Callable[[Tensor], Tensor]
    _cache: dict[tuple[torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __call__(self, output: Tensor, state: Tensor, steps: Tensor) -> Tensor:
        """y [n, ...] of raw outputs [n, ...] at states [n, ...] of table steps [n] (int64).

        Made and returned in float32, or float64 where an argument has it: large weights magnify rounding.
        """
        dtype = torch.promote_types(torch.promote_types(output.dtype, state.dtype), torch.float32)
        coefficients = self._coefficients(output.device, dtype)[:, steps.to(output.device)]
        p, q, clipped, unclipped = coefficients.reshape(4, -1, *(1,) * (output.ndim - 1))  # [n, 1, ...] each
        prediction = p * state.to(dtype) + q * output.to(dtype)
        result = self.clip(prediction)
        if not self._mixes:
            return result
        # clip(D) - D first: it is exactly 0 where nothing clips, whatever the weight.
        return (clipped + unclipped) * prediction + clipped * (result - prediction)

    @cached_property
    def _mixes(self) -> bool:
        return bool(self.unclipped.any())

    def _coefficients(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """[4, T] of (x0_state, x0_output, clipped, unclipped), moved once per device and dtype."""
        key = (device, dtype)
        if key not in self._cache:
            rows = torch.stack((self.x0_state, self.x0_output, self.clipped, self.unclipped))
            self._cache[key] = rows.to(device, dtype)
        return self._cache[key]


def unit_weights(steps: int) -> tuple[Tensor, Tensor]:
    """The weights of schedulers that use nothing but the clipped prediction, or do not clip."""
    return torch.ones(steps, dtype=torch.float64), torch.zeros(steps, dtype=torch.float64)


def rewrite_in_clipped(
    state: Tensor, output: Tensor, clipped: Tensor, x0: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Rewrite A x + B m + C clip(D) in y = w clip(D) + u D, where D = p x + q m; all [T, n], by lag.

    B m = (B/q) (D - p x), so the state's coefficient becomes A - B p/q, and C + B/q is left for y: w + u = 1.
    Where that sum vanishes (DDIM ending at the level it is at, x' = x + alpha (clip(D) - D)), y is given C
    instead, and w = 1.

    Returns:
        The coefficients of x and of y, and the weights (w, u), [T] each.
    """
    steps, lags = state.shape
    origin = (torch.arange(steps)[:, None] - torch.arange(lags)).clamp(min=0)  # step of lag k
    raw = torch.where(output == 0, 0.0, output / x0[1][origin])
    joint = clipped + raw
    vanishing = joint[:, 0].abs() < _VANISHING * clipped[:, 0].abs()
    coefficient = torch.where(vanishing, clipped[:, 0], joint[:, 0])
    weights = (
        torch.where(raw[:, 0] == 0, 1.0, clipped[:, 0] / coefficient),
        torch.where(raw[:, 0] == 0, 0.0, raw[:, 0] / coefficient),
    )
    both = torch.where(vanishing[origin], clipped, joint)
    for part, weight in zip((clipped, raw), weights, strict=True):
        mismatch = (part - weight[origin] * both).abs() > 1e-6 * both.abs().amax(dim=1, keepdim=True)
        if bool(mismatch.any()):
            raise Unreadable("it mixes clipped and unclipped predictions of a step in varying proportions")
    return state - raw * x0[0][origin], both, weights
