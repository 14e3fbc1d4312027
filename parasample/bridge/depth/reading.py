"""What components work on: the latents at hand, or predicted ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parasample.bridge.depth.arguments import with_states
from parasample.bridge.depth.denoiser import DepthDenoiser, Site
from parasample.bridge.scheduler_wrap import StepCall
from parasample.bridge.schedulers import ReadScheduler, read_scheduler
from parasample.config import Async
from parasample.errors import ConfigError, UnsupportedPipelineError
from parasample.plan.schedule import Reading, flows_forward

# Up to here predicted latents were more accurate than extrapolated hidden states where the sampler adds no
# noise and every step has its batch; with longer strides, or noise, they always were.
NEAR_COMPONENTS = 3

Sites = list[tuple[DepthDenoiser, Site]]


def read_for(
    config: Async, scheduler: Any, first_index: int, call: StepCall, sites: Sites
) -> tuple[ReadScheduler | None, str]:
    """The scheduler's recurrence where it can be read, and why latents cannot be predicted ("" where they
    can).
    """
    if config.extrapolate is None or config.num_ranks == 1:
        return None, "nothing is extrapolated"
    try:
        read = read_scheduler(scheduler, begin_index=first_index, step_kwargs=call.settings)
    except (ConfigError, UnsupportedPipelineError) as error:
        return None, str(error)
    given = all(_gives(site.latents, call.sample * read.table.input_scale[0]) for _, site in sites)
    return read, "" if given else "the pipeline changes the latents before the denoiser"


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
    forward = all(flows_forward(d.cut.graph, d.cut.split) for d, _ in sites if d.cut is not None)
    if wanted == "latents" and (reason or not forward) and config.num_ranks > 1:
        raise UnsupportedPipelineError(
            f"extrapolate='latents' cannot work here: {reason or 'components read later ones'}; pass "
            "extrapolate='auto', or a split whose components follow one another"
        )
    if wanted in ("linear", None) or read is None:
        return "stale", wanted == "linear"
    quiet = not read.table.stochastic
    near = config.components <= NEAR_COMPONENTS or config.stride > 1 or not quiet
    if wanted == "latents" or (forward and near and not reason and not config.time_shift):
        return "ahead", quiet
    return "stale", quiet
