"""What components work on: the latents at hand, or predicted ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parasample.bridge.depth.arguments import with_states
from parasample.bridge.depth.cut import Cut
from parasample.bridge.depth.denoiser import DepthDenoiser, Site
from parasample.bridge.scheduler_wrap import StepCall
from parasample.bridge.schedulers import ReadScheduler, read_scheduler
from parasample.config import Async
from parasample.errors import ConfigError, UnsupportedPipelineError
from parasample.plan.partition.stages import flows_forward, hops
from parasample.plan.timetable import Reading

# Where predicted latents were more accurate than extrapolated or stale hidden states, measured: without noise
# for nested components and with a stride, and for components in a row as far as two batches ahead; with noise
# as far as two steps.
QUIET_BATCHES_AHEAD = 2
NOISY_STEPS_AHEAD = 2

Sites = list[tuple[DepthDenoiser, Site]]


def read_for(
    config: Async, scheduler: Any, first_index: int, call: StepCall, sites: Sites, row: int = 0
) -> tuple[ReadScheduler | None, str]:
    """The scheduler's recurrence where it can be read, and why latents cannot be predicted ("" where they
    can). `call` is that of step `row` of the run.
    """
    if config.extrapolate is None or config.num_ranks == 1:
        return None, "nothing is extrapolated"
    try:
        read = read_scheduler(scheduler, begin_index=first_index, step_kwargs=call.settings)
    except (ConfigError, UnsupportedPipelineError) as error:
        return None, str(error)
    given = all(_gives(site.latents, call.sample * read.table.input_scale[row]) for _, site in sites)
    return read, "" if given else "the pipeline changes the latents before the denoiser"


def draws_noise(scheduler: Any, first_index: int) -> bool:
    """Whether the sampler does, as far as is known before the first step has shown its settings."""
    read = _as_it_is(scheduler, first_index)
    return read is not None and read.table.stochastic


def expected_reading(config: Async, scheduler: Any, first_index: int, cut: Cut) -> Reading:
    """What `choose_reading` will likely find, before the first step has shown the pipeline's settings."""
    if config.extrapolate in ("linear", None):
        return "stale"
    if config.extrapolate == "latents":
        return "ahead"
    read = _as_it_is(scheduler, first_index)
    return "ahead" if read is not None and _may_look_ahead(config, read, cut) else "stale"


def _as_it_is(scheduler: Any, first_index: int) -> ReadScheduler | None:
    """Its recurrence without the pipeline's settings, where it can be read."""
    try:
        return read_scheduler(scheduler, begin_index=first_index)
    except (ConfigError, UnsupportedPipelineError):
        return None


def _may_look_ahead(config: Async, read: ReadScheduler, cut: Cut) -> bool:
    batches = hops(cut.graph, cut.split)
    if read.table.stochastic:
        near = (batches + 1) * config.stride - 1 <= NOISY_STEPS_AHEAD
    else:
        nested = not flows_forward(cut.graph, cut.split)
        near = batches <= QUIET_BATCHES_AHEAD or nested or config.stride > 1
    return near and not config.time_shift


def _gives(latents: Tensor, states: Tensor) -> bool:
    """Whether a denoiser's latents are the scheduler's states, repeated, and maybe more channels."""
    copies, rest = divmod(latents.shape[0], states.shape[0])
    if rest or not copies or latents.ndim != states.ndim or latents.shape[2:] != states.shape[2:]:
        return False
    if latents.shape[1] < states.shape[1]:
        return False
    rounding = 1e-2 if latents.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return torch.allclose(latents, with_states(latents, states), rtol=rounding, atol=rounding)


def choose_reading(
    config: Async, read: ReadScheduler | None, reason: str, sites: Sites
) -> tuple[Reading, bool]:
    """What components work on, and whether values are extrapolated; see `Async.extrapolate`.

    Raises:
        UnsupportedPipelineError: for "latents" where they cannot be predicted.
    """
    wanted = config.extrapolate
    if wanted == "latents" and reason and config.num_ranks > 1:
        raise UnsupportedPipelineError(
            f"extrapolate='latents' cannot work here: {reason}; pass extrapolate='auto'"
        )
    if wanted in ("linear", None) or read is None:
        return "stale", wanted == "linear"
    quiet = not read.table.stochastic
    near = all(_may_look_ahead(config, read, d.cut) for d, _ in sites if d.cut is not None)
    if wanted == "latents" or (near and not reason):
        return "ahead", quiet
    return "stale", quiet
