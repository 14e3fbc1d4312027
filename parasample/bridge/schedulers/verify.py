"""Comparing a table with the scheduler it was read from, on the scheduler's own steps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parasample.bridge.schedulers.intercept import Unreadable, take_step, working_copy
from parasample.bridge.schedulers.noise import NoiseSource
from parasample.plan.table import AffineTable

# Relative errors allowed: a step adds up a few terms of its states' size, a run adds up the steps' errors, of
# which early ones grow with 1 / alpha. float32 rounds at 6e-8.
_STEP_TOLERANCE = 1e-5
_RUN_TOLERANCE = 1e-4
# Some schedulers divide a rounded difference by a small sigma (Heun's second half, up to 1e-4 of the state's
# size). They pass if they pass in float64 and are this close in float32: what is left is their own rounding.
_ROUNDING_TOLERANCE = 1e-3
_SHAPE = (2, 2, 2, 2)  # [B, C, H, W]: dynamic thresholding needs a few numbers per sample
_SEED = 1

ToOutput = Callable[[Tensor, Tensor, Tensor], Tensor] | None


@dataclass(frozen=True)
class _Deviation:
    """Largest relative error of a single step, and of a state of a run from x[0], and where they are."""

    step: int
    step_error: float
    state: int
    run_error: float

    @property
    def small(self) -> bool:  # written so that NaN is not small
        return self.step_error <= _STEP_TOLERANCE and self.run_error <= _RUN_TOLERANCE


def verify(
    scheduler: Any,
    begin_index: int | None,
    begin: int,
    step_kwargs: Mapping[str, Any],
    table: AffineTable,
    noise: NoiseSource,
    to_output: ToOutput,
    dtype: torch.dtype,
) -> None:
    """Run the scheduler on random model outputs and compare every state with the table's.

    Each step is checked from the scheduler's own states, then the whole run from x[0] alone.

    Raises:
        Unreadable: with the step and the relative error, if they differ.
    """

    def deviation(precision: torch.dtype) -> _Deviation:
        duplicate = working_copy(scheduler, begin_index)
        states, raw, draws = _run(duplicate, begin, step_kwargs, table, noise, precision)
        return _compare(table, states, _outputs(raw, states, to_output), draws)

    found = deviation(dtype)
    if found.small:
        return
    if dtype != torch.float64 and max(found.step_error, found.run_error) <= _ROUNDING_TOLERANCE:
        found = deviation(torch.float64)
        if found.small:
            return
    if not found.step_error <= _STEP_TOLERANCE:
        raise Unreadable(
            f"its step {found.step} differs from the coefficients read off it by {found.step_error:.1e} "
            f"of the state's size, more than {_STEP_TOLERANCE:g}"
        )
    raise Unreadable(
        f"state {found.state} of a run differs from the coefficients read off it by {found.run_error:.1e} "
        f"of the state's size, more than {_RUN_TOLERANCE:g}"
    )


def _run(
    scheduler: Any,
    begin: int,
    step_kwargs: Mapping[str, Any],
    table: AffineTable,
    noise: NoiseSource,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The scheduler's own states [T + 1, *_SHAPE], the raw outputs given [T, ...], and our draws [T, ...]."""
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    if any(noise.draws) and not takes_generator:
        raise Unreadable("it draws noise but its step takes no generator")
    own, ours, values = (torch.Generator().manual_seed(_SEED + offset) for offset in (0, 0, 1))
    # The noise level gives the size of x[0]; outputs of size 1 are as good as any.
    size = math.hypot(table.alpha[0], table.sigma[0])
    states = [torch.randn(_SHAPE, generator=values, dtype=dtype) * size]
    raw = torch.randn((table.num_steps, *_SHAPE), generator=values, dtype=dtype)
    extra = {**step_kwargs, "generator": own} if takes_generator else step_kwargs
    draws = []
    for i, timestep in enumerate(scheduler.timesteps[begin:]):
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(states[-1], timestep)
            if not torch.allclose(scaled, table.input_scale[i] * states[-1], rtol=_STEP_TOLERANCE, atol=0.0):
                raise Unreadable(f"its scale_model_input does more than multiply by a number, at step {i}")
        states.append(take_step(scheduler, raw[i], timestep, states[-1], extra).prev_sample)
        draw = noise.draw(i, raw[i], ours)
        draws.append(torch.zeros(_SHAPE, dtype=dtype) if draw is None else draw.to(dtype))
    return torch.stack(states), raw, torch.stack(draws)


def _outputs(raw: Tensor, states: Tensor, to_output: ToOutput) -> Tensor:
    """The table's outputs y [T, *_SHAPE] of the raw ones."""
    if to_output is None:
        return raw
    items = torch.arange(len(raw)).repeat_interleave(_SHAPE[0])
    return to_output(raw.flatten(0, 1), states[:-1].flatten(0, 1), items).reshape(raw.shape)


def _compare(table: AffineTable, *series: Tensor) -> _Deviation:
    """How far states [T + 1, ...] are from what the table makes of outputs and draws [T, ...]."""
    states, outputs, draws = (tensor.double().flatten(1).numpy() for tensor in series)
    steps = table.num_steps
    columns = min(table.depth + 1, steps)
    state, output = np.asarray(table.state), np.asarray(table.output)
    given = np.asarray(table.noise)[:, None] * draws  # what outputs and noise add, whatever the states
    predicted = np.zeros_like(given)
    size = np.sqrt(np.square(states).mean(axis=1))
    scale = size[1:].copy()  # of the largest state that a step reads or makes: it sets the step's rounding
    for k in range(columns):
        given[k:] += output[k:, k, None] * outputs[: steps - k]
        predicted[k:] += state[k:, k, None] * states[: steps - k]
        scale[k:] = np.maximum(scale[k:], size[: steps - k])
    step_error = np.abs(predicted + given - states[1:]).max(axis=1) / scale
    run = np.empty_like(states)
    run[0] = states[0]
    for i in range(steps):
        reach = min(i + 1, columns)
        run[i + 1] = given[i] + state[i, :reach] @ run[i + 1 - reach : i + 1][::-1]
    run_error = np.abs(run - states)[1:].max(axis=1) / scale
    step, at = int(np.argmax(step_error)), int(np.argmax(run_error))  # argmax finds NaN, if there is one
    return _Deviation(step, float(step_error[step]), at + 1, float(run_error[at]))
