"""Reading a scheduler's coefficients by stepping it on basis vectors.

Every step is given a state, a model output and a noise that are unit vectors nobody has used before; what
comes back holds the coefficients of all of them, old ones included, because the scheduler keeps its history
itself. Unit vectors are numbered modulo `_SLOTS`: the vectors stay short however many steps there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parasample.bridge.schedulers.clipping import Clip, rewrite_in_clipped, unit_weights
from parasample.bridge.schedulers.intercept import Intercept, Unreadable, take_step, working_copy

# History reaches back 12 steps in PNDM with Runge-Kutta start, the deepest there is. The slots beyond that
# must stay empty: if they do not, the history is unbounded and has come round.
_SLOTS = 16
_MAX_COLUMNS = 13
_STATE, _OUTPUT, _NOISE, _CLIPPED = range(4)
# Coefficients below this fraction of a row's largest are rounding, not history.
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Probe:
    """Coefficients read off a scheduler, in its raw outputs m, or in y (`ClippedOutput`) where it clips.

    Attributes:
        input_scale: [T].
        state, output: [T, K] float64.
        noise: [T] float64.
        draws, noise_dtype: see `NoiseSource`.
        x0: D = x0[0] x + x0[1] m, [2, T] float64, if the scheduler shows its data prediction; m is raw.
        weights: of clip(D) and of D in y, [T] each, see `ClippedOutput`; (1, 0) unless it clips.
        clip: None if it does not clip.
    """

    input_scale: Tensor
    state: Tensor
    output: Tensor
    noise: Tensor
    draws: tuple[bool, ...]
    noise_dtype: torch.dtype | None
    x0: Tensor | None
    weights: tuple[Tensor, Tensor]
    clip: Clip | None


class _Recorder:
    """Answers the draws and clips of one step with unit vectors and remembers what was asked."""

    def __init__(self, basis: Tensor) -> None:
        self.basis = basis
        self.step = 0
        self.draws: list[torch.dtype | None] = []
        self.predictions: list[Tensor | None] = []
        self.clip: Clip | None = None

    def begin_step(self, step: int) -> None:
        self.step = step
        self.draws.append(None)
        self.predictions.append(None)

    def unit(self, family: int) -> Tensor:
        return self.basis[family * _SLOTS + self.step % _SLOTS]

    def on_noise(self, dtype: torch.dtype) -> Tensor:
        if self.draws[-1] is not None:
            raise Unreadable(f"step {self.step} draws noise more than once")
        self.draws[-1] = dtype
        return self.unit(_NOISE).to(dtype)

    def on_clip(self, prediction: Tensor, clip: Clip) -> Tensor:
        if self.predictions[-1] is not None or (self.clip is not None and self.clip != clip):
            raise Unreadable(f"step {self.step} clips more than once, or unlike the step before it")
        self.clip = clip
        self.predictions[-1] = prediction
        return self.unit(_CLIPPED).to(prediction.dtype)


def probe_steps(scheduler: Any, begin_index: int | None, begin: int, step_kwargs: Mapping[str, Any]) -> Probe:
    """Read the steps from `begin` on; T = len(scheduler.timesteps) - begin.

    Raises:
        Unreadable: if a step reads further back than 13 steps, or is otherwise not of the table's form.
    """
    duplicate = working_copy(scheduler, begin_index)
    lanes = 4 * _SLOTS
    basis = torch.eye(lanes, dtype=torch.float64).reshape(lanes, 1, lanes, 1, 1)
    recorder = _Recorder(basis)
    if hasattr(duplicate, "_threshold_sample"):
        duplicate._threshold_sample = lambda prediction: recorder.on_clip(prediction, Clip(None))
    rows, predictions, scales = [], [], []
    intercept = Intercept(
        (1, lanes, 1, 1), recorder.on_noise, lambda x, low, high: recorder.on_clip(x, Clip((low, high)))
    )
    with intercept:
        for i, timestep in enumerate(duplicate.timesteps[begin:]):
            recorder.begin_step(i)
            state = recorder.unit(_STATE)
            scales.append(scale_of(duplicate, state, timestep))
            result = take_step(duplicate, recorder.unit(_OUTPUT), timestep, state, step_kwargs)
            rows.append(as_row(result.prev_sample, lanes))
            predictions.append(getattr(result, "pred_original_sample", None))
            if i == _SLOTS - 1 and _comes_round(rows):
                raise Unreadable("its history is not bounded")  # stepping on would show nothing new
    check_finite(rows)
    coefficients = _by_lag(torch.stack(rows))
    if bool(coefficients[:, _NOISE, 1:].any()):
        raise Unreadable("it uses a noise draw again in a later step")
    return _assemble(coefficients, recorder, predictions, torch.stack(scales))


def scale_of(scheduler: Any, state: Tensor, timestep: Tensor) -> Tensor:
    """input_scale of one step, read off `scale_model_input` on a unit vector; 1 without that method."""
    if not hasattr(scheduler, "scale_model_input"):
        return torch.ones((), dtype=torch.float64)
    return scheduler.scale_model_input(state, timestep).sum().double()


def as_row(sample: Tensor, lanes: int) -> Tensor:
    """A step's result as [lanes] float64."""
    if sample.numel() != lanes:
        raise Unreadable(f"a step turns a sample of {lanes} numbers into {sample.numel()}")
    return sample.reshape(lanes).double()


def check_finite(rows: list[Tensor]) -> None:
    """Raise Unreadable where a scheduler divides by zero, as by the distance of two equal timesteps."""
    for i, row in enumerate(rows):
        if not bool(row.isfinite().all()):
            raise Unreadable(f"its step {i} returns NaN or infinity for finite inputs")


def _comes_round(rows: list[Tensor]) -> bool:
    """Whether the first _SLOTS steps' last result still holds what only the first few were given."""
    guard = _by_lag(torch.stack(rows))[-1, [_STATE, _OUTPUT], _MAX_COLUMNS:]
    return bool((guard != 0).any())


def trim(*matrices: Tensor) -> tuple[Tensor, ...]:
    """[T, n] matrices cut to the smallest common number of columns that loses nothing."""
    columns = 1
    for matrix in matrices:
        used = matrix.abs() > _NEGLIGIBLE * matrix.abs().amax(dim=1, keepdim=True)
        columns = max(columns, *(used.any(dim=0).nonzero().flatten() + 1).tolist(), 1)
    return tuple(matrix[:, :columns] for matrix in matrices)


def _by_lag(rows: Tensor) -> Tensor:
    """[T, 4 * _SLOTS] -> [T, 4, _SLOTS], the last axis k counting backwards from the step's own vectors."""
    steps = len(rows)
    lag = (torch.arange(steps)[:, None] - torch.arange(_SLOTS)) % _SLOTS
    return rows.reshape(steps, 4, _SLOTS).gather(2, lag[:, None].expand(steps, 4, _SLOTS))


def _assemble(coefficients: Tensor, recorder: _Recorder, predictions: list[Any], scales: Tensor) -> Probe:
    state, output = coefficients[:, _STATE], coefficients[:, _OUTPUT]
    weights = unit_weights(len(state))
    if recorder.clip is None:
        x0 = _read_x0(predictions)
    else:
        x0 = _read_x0(recorder.predictions)
        if x0 is None:
            raise Unreadable(
                "it clips something else than a data prediction made of this step's state and output"
            )
        state, output, weights = rewrite_in_clipped(state, output, coefficients[:, _CLIPPED], x0)
    state, output = trim(state, output)
    if state.shape[1] > _MAX_COLUMNS:
        raise Unreadable("its history is not bounded")
    dtypes = {dtype for dtype in recorder.draws if dtype is not None}
    if len(dtypes) > 1:
        raise Unreadable(f"it draws noise in different dtypes, {sorted(map(str, dtypes))}")
    follows = dtypes <= {torch.float64}  # the probing dtype, which nobody asks for by name
    return Probe(
        input_scale=scales,
        state=state,
        output=output,
        noise=coefficients[:, _NOISE, 0],
        draws=tuple(dtype is not None for dtype in recorder.draws),
        noise_dtype=None if follows else dtypes.pop(),
        x0=x0,
        weights=weights,
        clip=recorder.clip,
    )


def _read_x0(predictions: list[Any]) -> Tensor | None:
    """[2, T] coefficients of D in this step's state and output; None if D is hidden or holds more."""
    if any(not isinstance(prediction, Tensor) for prediction in predictions):
        return None
    found = _by_lag(torch.stack([prediction.reshape(-1).double() for prediction in predictions]))
    history = found[:, [_STATE, _OUTPUT], 1:]
    if bool(history.any()) or bool(found[:, _CLIPPED].any()):
        return None
    return found[:, [_STATE, _OUTPUT], 0].T.contiguous()
