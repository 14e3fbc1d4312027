"""A parallelized pipeline: what every method shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, Protocol, Self

import torch
from torch import nn

from parasample.bridge.denoiser import takes_timestep
from parasample.bridge.scheduler_wrap import Run, WrappedScheduler, wrap_scheduler
from parasample.bridge.schedulers.fingerprint import fingerprint
from parasample.errors import ConfigError, UnsupportedPipelineError
from parasample.runtime.stats import Stats
from parasample.runtime.transports import Ranks, default_ranks


class Denoiser(Protocol):
    """A denoiser whose forward was replaced."""

    def remove(self) -> None:
        """Put the module's own forward back."""
        ...


class MethodRun(Run, Protocol):
    """One call of a parallelized pipeline."""

    @property
    def stats(self) -> Stats: ...


class Handle(ABC):
    """A parallelized pipeline: `stats` of its last call, and the way back."""

    def __init__(self, pipe: Any, ranks: Ranks | None = None) -> None:
        scheduler = getattr(pipe, "scheduler", None)
        if isinstance(scheduler, WrappedScheduler):
            raise ConfigError("this pipeline is parallelized already; call handle.restore() first")
        for method in ("set_timesteps", "step"):
            if not callable(getattr(scheduler, method, None)):
                raise UnsupportedPipelineError(
                    f"expected a pipeline with a diffusers scheduler, found {type(pipe).__name__} whose "
                    f"scheduler is {type(scheduler).__name__}; pass a pipeline, or use ps.sample for a bare "
                    "model"
                )
        modules = {name: module for name, module in _components(pipe).items() if takes_timestep(module)}
        if not modules:
            raise UnsupportedPipelineError(
                f"found no denoiser (a module whose forward takes a timestep) in {type(pipe).__name__}; "
                "sample it sequentially, or use ps.sample for a bare model"
            )
        self.pipe = pipe
        self._scheduler = scheduler
        self._scheduler_was = _state_of(scheduler)
        self._run: MethodRun | None = None
        self._stats = Stats()
        self._ranks = default_ranks() if ranks is None else ranks
        self._modules = modules
        self._check(modules)
        self._wrapped = wrap_scheduler(scheduler, self)
        self._denoisers: list[Denoiser] = [self._wrap(name, module) for name, module in modules.items()]
        # Past the pipeline's __setattr__, which would rewrite its config with our class name.
        object.__setattr__(pipe, "scheduler", self._wrapped)

    # ------------------------------------------------------------------ what a method does its own way

    config: Any

    @abstractmethod
    def _check(self, modules: dict[str, nn.Module]) -> None:
        """Raise before anything was changed, if the method cannot work here."""

    @abstractmethod
    def _wrap(self, name: str, module: nn.Module) -> Denoiser:
        """Replace the forward of a denoiser."""

    @abstractmethod
    def _new_run(self, scheduler: Any) -> MethodRun:
        """A call of the pipeline begins; `scheduler` is an unwrapped copy as `set_timesteps` left it."""

    # ------------------------------------------------------------------ what the user sees

    @property
    def stats(self) -> Stats:
        """Costs of the last call."""
        return self._run.stats if self._run is not None else self._stats

    def restore(self) -> None:
        """Put the pipeline back as it was before `parallelize`; does nothing the second time."""
        if self._run is not None:
            self._stats, self._run = self._run.stats, None
        for denoiser in self._denoisers:
            denoiser.remove()
        self._denoisers = []
        if getattr(self.pipe, "scheduler", None) is self._wrapped:
            object.__setattr__(self.pipe, "scheduler", self._scheduler)

    def __enter__(self) -> Self:
        if not self._denoisers:
            raise ConfigError("this handle was restored; call ps.parallelize again")
        return self

    def __repr__(self) -> str:
        state = "" if self._denoisers else ", restored"
        return f"<{type(self).__name__} of {type(self.pipe).__name__}, {self.config!r}{state}>"

    def __exit__(self, *exception: object) -> None:
        self.restore()

    # ------------------------------------------------------------------ called by the wrapped scheduler

    def begin_run(self, scheduler: Any) -> None:
        """`set_timesteps` was called: a new call of the pipeline starts clean."""
        if not self._denoisers:
            return  # restored; another pipeline still holds the wrapped scheduler, and gets the plain one
        if _state_of(self._scheduler) != self._scheduler_was:
            raise ConfigError(
                "the scheduler that the pipeline had was changed after parallelize; call handle.restore(), "
                "change it, then parallelize again"
            )
        now = _components(self.pipe)
        for name, module in self._modules.items():
            found = now.get(name)
            if getattr(found, "_orig_mod", found) is not module:  # compiling it replaces nothing
                raise ConfigError(
                    f"the pipeline's {name} was replaced by a {type(found).__name__} after parallelize; call "
                    "handle.restore(), set it, then parallelize again"
                )
        self._run = self._new_run(scheduler)

    @property
    def run(self) -> Run | None:
        """The last call of the pipeline, which may still go on."""
        return self._run

    def _current_run(self) -> MethodRun | None:
        """The run a denoiser's call may belong to; refuses what would silently run sequentially."""
        found = getattr(self.pipe, "scheduler", None)
        if found is not self._wrapped:
            raise ConfigError(
                f"the pipeline's scheduler was replaced by a {type(found).__name__} after parallelize; call "
                "handle.restore(), set the scheduler, then parallelize again"
            )
        return self._run


def _state_of(scheduler: Any) -> Hashable:
    return fingerprint(scheduler, None, {}, torch.float32)


def _components(pipe: Any) -> dict[str, nn.Module]:
    found = dict(getattr(pipe, "components", None) or vars(pipe))
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}
