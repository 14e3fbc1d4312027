"""Schedulers that clip their data prediction: how they clip, and a table in terms of what comes of it.

`parasample.runtime.clipping` makes the clipped prediction itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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

    def numbers(self) -> tuple[float, float] | None:
        """(lowest, highest), infinite on a side that is open; None for `_threshold_sample`."""
        if self.bounds is None:
            return None
        low, high = self.bounds
        if any(isinstance(bound, Tensor) and bound.numel() != 1 for bound in self.bounds):
            raise Unreadable("it clips every element to bounds of its own")
        return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


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
