"""Latents of steps to come, predicted from those already taken.

The scheduler's recurrence (`AffineTable`) is exact and its noise is known beforehand; all that is missing is
what the model will say. Its data prediction D moves slowly, so that it is extrapolated linearly in the
logarithm of the signal-to-noise ratio, lambda = log(alpha / sigma), from its last two values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from parasample.plan.table import AffineTable

DrawNoise = Callable[[int], Tensor | None]
ToOutput = Callable[[Tensor, Tensor, Tensor], Tensor]
FLOOR = 1e-6  # of alpha and sigma, so that a schedule that begins without any signal has a lambda


class LatentPredictor:
    """Follows one run and looks ahead of it.

    Args:
        table: the scheduler's recurrence, T steps.
        start: x[0], [B, ...].
        draw_noise: `draw_noise(i)` gives the noise of step i, [B, ...]; called once per step, in order.
        to_output: converts raw model outputs [B, ...] at states [B, ...] of steps [B] into the table's.
    """

    def __init__(
        self, table: AffineTable, start: Tensor, draw_noise: DrawNoise, to_output: ToOutput | None
    ) -> None:
        self.table = table
        self._to_output = to_output
        self._draw_noise = draw_noise
        self._noise: dict[int, Tensor | None] = {}
        self._drawn = 0
        self._dtype = torch.float64 if start.dtype == torch.float64 else torch.float32
        self._states = {0: start.to(self._dtype)}
        self._outputs: dict[int, Tensor] = {}
        self._data: list[tuple[int, Tensor]] = []
        self._predicted: dict[int, Tensor] = {}
        self._lambda = [
            math.log(max(alpha, FLOOR) / max(sigma, FLOOR))
            for alpha, sigma in zip(table.alpha, table.sigma, strict=True)
        ]

    @property
    def step(self) -> int:
        """The step whose state is the last one known."""
        return max(self._states)

    @property
    def state(self) -> Tensor:
        """The last state known, x[step]."""
        return self._states[self.step]

    def observe(self, state: Tensor) -> None:
        """The state that the loop goes on from, which may have been changed since `advance`."""
        self._states[self.step] = state.to(self._dtype)

    def predict(self, step: int) -> Tensor:
        """The state before `step`, [B, ...]: known, or as it was predicted when first asked for."""
        if step <= self.step:
            return self._states[step]
        if step in self._predicted:
            return self._predicted[step]
        states, outputs = dict(self._states), dict(self._outputs)
        for i in range(self.step, step):
            outputs[i] = (self._data_ahead(i) - self.table.x0_state[i] * states[i]) / self.table.x0_output[i]
            states[i + 1] = self._next(i, states, outputs)
        self._predicted[step] = states[step]
        return states[step]

    def _data_ahead(self, step: int) -> Tensor:
        last, data = self._data[-1]
        if len(self._data) < 2:
            return data
        before, earlier = self._data[-2]
        gap = self._lambda[last] - self._lambda[before]
        reach = (self._lambda[step] - self._lambda[last]) / gap if gap else 0.0
        return torch.lerp(earlier, data, 1.0 + min(reach, self._trust()))

    def _trust(self) -> float:
        """How far to extrapolate, in gaps between known values: not further than they reach back."""
        return (self.step - 1) / 2

    def _next(self, i: int, states: dict[int, Tensor], outputs: dict[int, Tensor]) -> Tensor:
        total = torch.zeros_like(states[i])
        for k in range(min(self.table.depth, i) + 1):
            if self.table.state[i][k]:
                total.add_(states[i - k], alpha=self.table.state[i][k])
            if self.table.output[i][k]:
                total.add_(outputs[i - k], alpha=self.table.output[i][k])
        noise = self._noise_of(i)
        return total if noise is None else total.add_(noise, alpha=self.table.noise[i])

    def _noise_of(self, step: int) -> Tensor | None:
        while self._drawn <= step:
            self._noise[self._drawn] = self._draw_noise(self._drawn)
            self._drawn += 1
        return self._noise[step] if self.table.noise[step] else None

    def correct(self, output: Tensor) -> Tensor:
        """A model output for the predicted state of `step`, carried over to its true state; both [B, ...].

        D(x) ~ D(x') + gamma (x - x') with the slope gamma = alpha / (alpha^2 + sigma^2) of unit Gaussian
        data.
        """
        step = self.step
        predicted = self._predicted.pop(step, None)
        if predicted is None or self._to_output is not None:
            return output
        alpha, sigma = self.table.alpha[step], self.table.sigma[step]
        slope = alpha / (alpha * alpha + sigma * sigma)
        # m = (D - u x) / w with (u, w) the table's x0 coefficients: the change of x moves D by gamma, m by
        # this.
        factor = (slope - self.table.x0_state[step]) / self.table.x0_output[step]
        return output + (factor * (self.state - predicted)).to(output.dtype)

    def advance(self, output: Tensor, state: Tensor) -> None:
        """Note the raw model output [B, ...] of `step` and the state after it."""
        step, here = self.step, self.state
        found = output.to(self._dtype)
        if self._to_output is not None:
            steps = torch.full((found.shape[0],), step, device=found.device)
            found = self._to_output(found, here, steps)
        self._outputs[step] = found
        data = self.table.x0_state[step] * here + self.table.x0_output[step] * found
        self._data = [*self._data[-1:], (step, data)]
        self._states[step + 1] = state.to(self._dtype)
        for kept in (self._states, self._outputs, self._noise, self._predicted):
            for old in [key for key in kept if key < step - self.table.depth]:
                del kept[old]
