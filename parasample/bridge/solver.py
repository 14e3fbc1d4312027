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
    """A solver for the first `batch` rows of `sample` [S, ...], the latents that noise is shaped as.

    `scheduler` is an unwrapped scheduler as set_timesteps left it; the run starts at its timestep
    `first_index`.
    """
    start = sample[:batch]
    # In exact mode the scheduler's own step draws from the generator; the iteration looks ahead with a copy
    # of it.
    source = copied(generator, sample.device) if config.exact else generator

    def draw(step: int) -> Tensor | None:
        noise = read.noise.draw(step, sample, source)
        return None if noise is None else noise[:batch]

    _require_same_call(read, sample, config, generator, ranks)
    if not config.exact:
        return PicardSolver(read.table, start, config, draw, read.to_output, ranks)
    own = OwnSteps(scheduler, first_index, sample.dtype, generator, step_kwargs)
    return ExactSolver(read.table, start, config, draw, read.to_output, ranks, own=own)


class OwnSteps:
    """The scheduler's own arithmetic, one step after the other from `first_index` on, and back again."""

    def __init__(
        self,
        scheduler: Any,
        first_index: int,
        dtype: torch.dtype,
        generator: Generators,
        step_kwargs: Mapping[str, Any],
    ) -> None:
        self._fresh = scheduler
        self._first_index = first_index
        self._dtype = dtype
        self._generator = generator
        self._arguments = dict(step_kwargs)
        if "generator" in inspect.signature(scheduler.step).parameters:
            self._arguments["generator"] = generator
        self._begin()

    def _begin(self) -> None:
        self._scheduler = copy.deepcopy(self._fresh)
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(self._first_index)
        self._taken: list[tuple[Tensor, Tensor, list[Tensor]]] = []

    def commit(self, step: int, output: Tensor, state: Tensor) -> Tensor:
        """The state [B, ...] after `step`, from the raw model output at `state`, both [B, ...]."""
        self._taken.append((output, state, generator_states(self._generator, state.device)))
        timestep = self._scheduler.timesteps[self._first_index + step]
        return self._scheduler.step(
            output, timestep, state.to(self._dtype), return_dict=False, **self._arguments
        )[0]

    def scale(self, step: int, state: Tensor) -> Tensor:
        """The model's input for `state`."""
        timestep = self._scheduler.timesteps[self._first_index + step]
        return self._scheduler.scale_model_input(state.to(self._dtype), timestep)

    def rewind(self, step: int) -> None:
        """Be as before `step` was committed, the scheduler's history and the generators included."""
        taken = self._taken
        if step >= len(taken):
            return
        self._begin()
        _set_generator_states(self._generator, taken[0][1].device, taken[0][2])
        for earlier, (output, state, _) in enumerate(taken[:step]):
            self.commit(earlier, output, state)


def _require_same_call(
    read: ReadScheduler, sample: Tensor, config: Picard, generator: Generators, ranks: Ranks
) -> None:
    """Raise ConfigError on every rank unless all of them start the same computation."""
    if ranks.size == 1:
        return
    ranks.require_same("the starting latents", sample)
    ranks.require_same("the method", torch.frombuffer(bytearray(repr(config).encode()), dtype=torch.uint8))
    ranks.require_same("the schedule", torch.tensor(read.table.timesteps, dtype=torch.float64))
    if any(read.noise.draws):
        ranks.require_same("the generator", torch.cat(generator_states(generator, sample.device)))


def generator_states(generator: Generators, device: torch.device) -> list[Tensor]:
    """The states of what noise on `device` is drawn from: one generator, several, or the global one for
    None.
    """
    if isinstance(generator, list):
        return [each.get_state() for each in generator]
    if generator is None:  # the global generator of the device that the noise is drawn on
        return [torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)]
    return [generator.get_state()]


def _set_generator_states(generator: Generators, device: torch.device, states: list[Tensor]) -> None:
    if generator is None:
        torch.set_rng_state(states[0]) if device.type == "cpu" else torch.cuda.set_rng_state(
            states[0], device
        )
        return
    for each, state in zip(generator if isinstance(generator, list) else [generator], states, strict=True):
        each.set_state(state)


def copied(generator: Generators, device: torch.device) -> Generators:
    """Generators that will draw the same, to look ahead with."""
    if isinstance(generator, list):
        return [torch.Generator(each.device).set_state(each.get_state()) for each in generator]
    own_device = device if generator is None else generator.device
    return torch.Generator(own_device).set_state(generator_states(generator, device)[0])
