"""Any diffusers scheduler as an affine recurrence, read off its own `step`; no code per scheduler.

`probe` steps it on basis vectors, `chain` does so for predictor-correctors, `intercept` stands in for noise
and clipping meanwhile, `marginals` finds noise levels and data predictions, and `verify` compares the result
with the scheduler itself, always. `noise` and `clipping` then do outside the scheduler what it would have
done inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parasample.bridge.schedulers.chain import probe_chain
from parasample.bridge.schedulers.fingerprint import Cache, fingerprint
from parasample.bridge.schedulers.intercept import Unreadable, working_copy
from parasample.bridge.schedulers.marginals import read_marginals
from parasample.bridge.schedulers.noise import NoiseSource
from parasample.bridge.schedulers.probe import Probe, probe_steps
from parasample.bridge.schedulers.verify import verify
from parasample.errors import ConfigError, UnsupportedPipelineError
from parasample.plan.table import AffineTable, posterior_variance
from parasample.runtime.clipping import ClippedOutput

__all__ = ["NoiseSource", "ReadScheduler", "read_scheduler"]

# Histories deeper than a third-order multistep solver's hint at a corrector: `probe_chain` looks again.
_USUAL_COLUMNS = 3
# Pipelines alternate between a few schedules; a table of 1000 steps is under a megabyte.
_cache: Cache[ReadScheduler] = Cache(32)


@dataclass(frozen=True)
class ReadScheduler:
    """A scheduler's steps from its begin index on, as data and as functions; never changed after.

    Attributes:
        table: T steps. Its y is the raw model output m, or to_output(m, ...) where that is not None.
        noise: draws z[i] as the scheduler would.
        replaceable: whether the recurrence holds for states from elsewhere, too. Predictor-correctors go on
            from their own last state, so that a state put in by somebody else is not what they continue from.
        to_output: y [n, ...] of raw outputs [n, ...], states [n, ...] and table steps [n] (int64); None where
            y is m. See `ClippedOutput`.
    """

    table: AffineTable
    noise: NoiseSource
    to_output: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    replaceable: bool = True


def read_scheduler(
    scheduler: Any,
    *,
    begin_index: int | None = None,
    step_kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> ReadScheduler:
    """Read the recurrence that `scheduler` runs from `begin_index` on, and verify it against its own steps.

    Args:
        scheduler: a diffusers scheduler on which `set_timesteps` was called; it is copied, not changed.
        begin_index: first step, an index into scheduler.timesteps; None takes the scheduler's own begin
            index, or 0. A scheduler started late (image to image) takes lower-order first steps: they are
            read as such.
        step_kwargs: what the pipeline passes to `step` besides model output, timestep, sample and generator.
        dtype: of the run that the result is verified on; half precisions are verified in float32.

    Raises:
        ConfigError: if set_timesteps was not called or begin_index is out of range.
        UnsupportedPipelineError: if the scheduler is no affine recurrence of bounded history, or its table
            does not reproduce its own steps to 1e-5 of the state's size.
    """
    name = type(scheduler).__name__
    begin = _begin(scheduler, begin_index)
    ignored = ("generator", "return_dict")
    kwargs = {key: value for key, value in (step_kwargs or {}).items() if key not in ignored}
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    key = fingerprint(scheduler, begin_index, kwargs, dtype)
    found = _cache.get(key)
    if found is not None:
        return found
    try:
        # A scheduler that draws in a way we do not see must not advance the user's random numbers.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            result = _read(scheduler, begin_index, begin, kwargs, dtype)
    except Unreadable as reason:
        raise UnsupportedPipelineError(_sentence(name, str(reason))) from reason
    _cache.put(key, result)
    return result


def _sentence(name: str, reason: str) -> str:
    return (
        f"{name} cannot be read as an affine recurrence: {reason}; run it sequentially, or choose another "
        "scheduler or setting, such as the defaults of DDIM, DPM-Solver++ or flow-match Euler"
    )


def _begin(scheduler: Any, begin_index: int | None) -> int:
    if not hasattr(scheduler, "step") or not hasattr(scheduler, "timesteps"):
        raise UnsupportedPipelineError(_sentence(type(scheduler).__name__, "it has no step and timesteps"))
    total = 0 if scheduler.timesteps is None else len(scheduler.timesteps)
    custom = getattr(scheduler, "custom_timesteps", False)  # DDPM then leaves num_inference_steps at None
    if total == 0 or (getattr(scheduler, "num_inference_steps", total) is None and not custom):
        raise ConfigError(f"{type(scheduler).__name__} has no timesteps yet; call its set_timesteps first")
    begin = begin_index if begin_index is not None else getattr(scheduler, "begin_index", None) or 0
    if not 0 <= begin < total:
        raise ConfigError(f"begin_index={begin} is outside 0..{total - 1}, the scheduler's {total} timesteps")
    return begin


def _read(
    scheduler: Any, begin_index: int | None, begin: int, kwargs: Mapping[str, Any], dtype: torch.dtype
) -> ReadScheduler:
    if str(scheduler.config.get("variance_type", "")).startswith("learned"):
        raise Unreadable("it takes the size of its noise from the model's output (variance_type learned)")
    probe, replaceable = _probe(scheduler, begin_index, begin, kwargs)
    table, to_output = _tabulate(scheduler, begin, probe)
    noise = NoiseSource(probe.draws, probe.noise_dtype)
    verify(scheduler, begin_index, begin, kwargs, table, noise, to_output, dtype)
    return ReadScheduler(table, noise, to_output, replaceable)


def _probe(
    scheduler: Any, begin_index: int | None, begin: int, kwargs: Mapping[str, Any]
) -> tuple[Probe, bool]:
    """The plain reading, or along the scheduler's own trajectory where that gives a shorter history.

    Also whether the reading holds for states from elsewhere: the plain one does.
    """
    try:
        plain = probe_steps(scheduler, begin_index, begin, kwargs)
    except Unreadable:
        if not hasattr(scheduler, "convert_model_output"):
            raise
        return probe_chain(scheduler, begin_index, begin, kwargs), False
    if plain.state.shape[1] <= _USUAL_COLUMNS:
        return plain, True
    try:
        along = probe_chain(scheduler, begin_index, begin, kwargs)
    except Unreadable:
        return plain, True
    shorter = along.state.shape[1] < plain.state.shape[1]
    return (along, False) if shorter else (plain, True)


def _tabulate(scheduler: Any, begin: int, probe: Probe) -> tuple[AffineTable, ClippedOutput | None]:
    alpha, sigma, x0 = read_marginals(scheduler, begin, probe)
    to_output = None
    x0_state, x0_output = x0
    if probe.clip is not None:
        clip = probe.clip.numbers() or working_copy(scheduler, None)._threshold_sample
        to_output = ClippedOutput(x0_state, x0_output, *probe.weights, clip)
        # y is D, but where the weights cancel y is what clipping cuts off, and D is about x / alpha.
        x0_state = torch.where(torch.stack(probe.weights).sum(dim=0) < 0.5, 1 / alpha[:-1], 0.0)
        x0_output = torch.ones_like(x0_output)
    levels = _numbers(alpha), _numbers(sigma)
    table = AffineTable(
        timesteps=_numbers(scheduler.timesteps[begin:]),
        input_scale=_numbers(probe.input_scale),
        state=tuple(map(_numbers, probe.state)),
        output=tuple(map(_numbers, probe.output)),
        noise=_numbers(probe.noise),
        alpha=levels[0],
        sigma=levels[1],
        x0_state=_numbers(x0_state),
        x0_output=_numbers(x0_output),
        variance=posterior_variance(*levels),
    )
    for name in ("state", "output", "noise", "input_scale", "alpha", "sigma", "x0_state", "x0_output"):
        if not bool(torch.tensor(getattr(table, name)).isfinite().all()):
            raise Unreadable(
                f"its {name} coefficients are not finite (a noise level of 0 or infinity in the schedule)"
            )
    return table, to_output


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.double().tolist())
