"""Make the solver for a scheduler that has been read."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parasample.bridge.schedulers import ReadScheduler
from parasample.config import Picard
from parasample.runtime.exact import ExactSolver
from parasample.runtime.picard import PicardSolver
from parasample.runtime.transports import Ranks

Generators = torch.Generator | list[torch.Generator] | None


def make_solver(
    read: ReadScheduler,
    scheduler: Any,
    first_index: int,
    sample: Tensor,
    batch: int,
    config: Picard,
    generator: Generators,
    step_kwargs: Mapping[str, Any],
    ranks: Ranks,
) -> PicardSolver:
    """A solver for the first `batch` rows of `sample`, the latents [S, ...] that the scheduler's noise is shaped as.

    `scheduler` is an unwrapped scheduler as set_timesteps left it; the run starts at its timestep `first_index`.
    """
    start = sample[:batch]
    # In exact mode the scheduler's own step draws from the generator; the iteration looks ahead with a copy of it.
    source = _copied(generator, sample.device) if config.exact else generator

    def draw(step: int) -> Tensor | None:
        noise = read.noise.draw(step, sample, source)
        return None if noise is None else noise[:batch]

    if not config.exact:
        return PicardSolver(read.table, start, config, draw, read.to_output, ranks)
    exact = copy.deepcopy(scheduler)
    if hasattr(exact, "set_begin_index"):
        exact.set_begin_index(first_index)
    arguments = dict(step_kwargs)
    if "generator" in inspect.signature(exact.step).parameters:
        arguments["generator"] = generator

    def commit(step: int, output: Tensor, state: Tensor) -> Tensor:
        timestep = exact.timesteps[first_index + step]
        after = exact.step(output, timestep, state.to(sample.dtype), return_dict=False, **arguments)[0]
        return after

    def scale(step: int, state: Tensor) -> Tensor:
        return exact.scale_model_input(state.to(sample.dtype), exact.timesteps[first_index + step])

    return ExactSolver(read.table, start, config, draw, read.to_output, ranks, commit=commit, scale=scale)


def _copied(generator: Generators, device: torch.device) -> Generators:
    if isinstance(generator, list):
        return [_copied(each, device) for each in generator]  # type: ignore[misc]
    if generator is None:  # the global generator of the device that the noise is drawn on
        state = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
        return torch.Generator(device).set_state(state)
    return torch.Generator(generator.device).set_state(generator.get_state())
