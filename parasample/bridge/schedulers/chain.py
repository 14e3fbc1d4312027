"""Reading predictor-corrector schedulers (UniPC, SA-Solver), whose corrector rewrites the state in place.

Stepped on independent states such a scheduler shows a history without end, because the corrected state lives
on inside it. On trajectories that it made itself the history is short: predictor and corrector share their
first terms, so the corrected state differs from the predicted one by outputs only, and in h, the converted
output the solver works with (UniPC, arXiv 2302.04867, algorithm 1),

    x[i+1] = a[i] x[i] + sum_k c[i][k] h[i-k] + s[i] z[i],      h[i] = p[i] x[i] + q[i] m[i].

So the scheduler is run once on its own states, written in the basis x[0], h[0..T-1], z[0..T-1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parasample.bridge.schedulers.clipping import Clip, unit_weights
from parasample.bridge.schedulers.intercept import Intercept, Unreadable, take_step, working_copy
from parasample.bridge.schedulers.probe import Probe, as_row, check_finite, scale_of, trim

# Orders above 3 are not published for these solvers; the corrector adds one column.
_MAX_COLUMNS = 5
# A row that keeps more than this fraction outside the columns is not of the form above.
_RESIDUAL = 1e-9


def probe_chain(scheduler: Any, begin_index: int | None, begin: int, step_kwargs: Mapping[str, Any]) -> Probe:
    """Read the steps from `begin` on, at the price of vectors of 2 T + 3 numbers.

    Raises:
        Unreadable: if the scheduler has no `convert_model_output`, or the form above does not fit.
    """
    duplicate = working_copy(scheduler, begin_index)
    if not hasattr(duplicate, "convert_model_output"):
        raise Unreadable("its history is not bounded")
    timesteps = duplicate.timesteps[begin:]
    steps = len(timesteps)
    lanes = 2 * steps + 3
    shape = (1, lanes, 1, 1)
    of_state, of_output = lanes - 2, lanes - 1  # two lanes beside the basis show how outputs are converted
    conversions: list[tuple[float, float]] = []
    draws: list[torch.dtype | None] = []
    thresholds: list[bool] = []

    def unit(lane: int, dtype: torch.dtype = torch.float64) -> Tensor:
        vector = torch.zeros(lanes, dtype=dtype)
        vector[lane] = 1.0
        return vector.reshape(shape)

    def on_noise(dtype: torch.dtype) -> Tensor:
        if draws[-1] is not None:
            raise Unreadable("a step draws noise more than once")
        draws[-1] = dtype
        return unit(steps + len(draws), dtype)

    def threshold(prediction: Tensor) -> Tensor:
        thresholds.append(True)
        return prediction

    def convert(model_output: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        converted = original(model_output, *args, **kwargs).reshape(-1)
        conversions.append((float(converted[of_state]), float(converted[of_output])))
        return unit(len(conversions))

    original = duplicate.convert_model_output
    duplicate.convert_model_output = convert
    if hasattr(duplicate, "_threshold_sample"):
        duplicate._threshold_sample = threshold
    rows, scales = [unit(0).reshape(-1)], []
    with Intercept(shape, on_noise):
        for timestep in timesteps:
            draws.append(None)
            state = rows[-1].clone()
            state[of_state], state[of_output] = 1.0, 0.0
            state = state.reshape(shape)
            scales.append(scale_of(duplicate, unit(0), timestep))
            result = take_step(duplicate, unit(of_output), timestep, state, step_kwargs)
            rows.append(as_row(result.prev_sample, lanes))
    check_finite(rows[1:])
    if len(conversions) != steps:
        raise Unreadable(f"it converts {len(conversions)} outputs in {steps} steps")
    decay, history, noise = _fit(torch.stack(rows)[:, : 2 * steps + 1])
    p, q = torch.tensor(conversions, dtype=torch.float64).T
    clip = Clip(None) if thresholds else None
    if clip is None:
        state, output = _in_raw(history, p, q)
    else:
        state, output = torch.zeros_like(history), history
    state[:, 0] += decay
    state, output = trim(state, output)
    dtypes = {dtype for dtype in draws if dtype is not None}
    return Probe(
        input_scale=torch.stack(scales),
        state=state,
        output=output,
        noise=noise,
        draws=tuple(dtype is not None for dtype in draws),
        noise_dtype=None if dtypes <= {torch.float64} else dtypes.pop(),
        x0=torch.stack((p, q)) if getattr(duplicate, "predict_x0", False) else None,
        weights=unit_weights(steps),
        clip=clip,
    )


def _fit(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a [T], c [T, _MAX_COLUMNS] and s [T] from the states [T + 1, 1 + 2 T] in the basis x[0], h, z."""
    steps = len(rows) - 1
    decay = rows[1:, 0] / rows[:-1, 0]
    added = rows[1:] - decay[:, None] * rows[:-1]  # what each step adds to the decayed state
    index = torch.arange(steps)
    noise = added[index, 1 + steps + index].clone()
    columns = torch.arange(_MAX_COLUMNS)
    source = index[:, None] - columns
    history = torch.where(source >= 0, added.gather(1, 1 + source.clamp(min=0)), 0.0)
    added[index, 1 + steps + index] = 0.0
    for k in range(min(_MAX_COLUMNS, steps)):
        added[index[k:], 1 + index[: steps - k]] = 0.0
    if not bool((added.abs().amax(dim=1) <= _RESIDUAL * rows.abs().amax(dim=1)[1:]).all()):
        raise Unreadable("its history is not bounded, even along its own trajectories")
    return decay, history, noise


def _in_raw(history: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """c h = c p x + c q m: the columns of h as columns of the state and of the raw output."""
    origin = (torch.arange(len(history))[:, None] - torch.arange(history.shape[1])).clamp(min=0)
    return history * p[origin], history * q[origin]
