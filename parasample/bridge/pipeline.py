"""`parallelize`: make a diffusers pipeline sample in parallel, without changing or copying it."""

from __future__ import annotations

import copy
import logging
from typing import Any

from torch import nn

from parasample.bridge.auto import WindowChooser
from parasample.bridge.conditioning import pipeline_numbers
from parasample.bridge.denoiser import WrappedDenoiser
from parasample.bridge.depth import AsyncHandle
from parasample.bridge.handle import Handle
from parasample.bridge.run import PipelineRun
from parasample.bridge.schedulers import read_scheduler
from parasample.config import Async, Picard
from parasample.errors import ConfigError

logger = logging.getLogger(__name__)


def parallelize(pipe: Any, *methods: Picard | Async) -> Handle:
    """Make every call of `pipe` sample in parallel until `handle.restore()`.

    Args:
        pipe: a diffusers pipeline, or any object with a `scheduler` (diffusers' interface) and denoisers
            among its attributes whose forward takes a timestep. It is called as before, with any arguments.
        methods: `ps.Picard(...)` (in time) or `ps.Async(...)` (in depth). Under `torchrun` all ranks share
            the work: every rank makes the same call, with a generator of the same seed, and gets the same
            result.

    Returns:
        A handle with `stats` of the last call and `restore()`; also a context manager that restores on exit.

    Raises:
        ConfigError: for methods that do not fit together, or a pipeline that is parallelized already.
        UnsupportedPipelineError: when the pipeline or its scheduler cannot be sampled in parallel, with
            the reason.
    """
    if len(methods) == 1 and isinstance(methods[0], Picard):
        return PicardHandle(pipe, methods[0])
    if len(methods) == 1 and isinstance(methods[0], Async):
        return AsyncHandle(pipe, methods[0])
    if {type(method) for method in methods} == {Picard, Async} and len(methods) == 2:
        raise ConfigError(
            "expected one method, found Picard and Async, which do not work together yet; pass one of them"
        )
    found = ", ".join(
        f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
        for method in methods
    )
    raise ConfigError(
        f"expected one method, found {found or 'nothing'}; pass ps.Picard(...) or ps.Async(...)"
    )


class PicardHandle(Handle):
    """A pipeline parallelized in time."""

    def __init__(self, pipe: Any, config: Picard) -> None:
        if config.control != "host":
            raise ConfigError(
                f"control={config.control!r} is for ps.sample: a pipeline's own loop asks for every "
                'state; pass control="host"'
            )
        self.config = config
        self._chooser = WindowChooser()
        super().__init__(pipe)

    def _check(self, modules: dict[str, nn.Module]) -> None:
        _require_readable(self._scheduler)

    def _wrap(self, name: str, module: nn.Module) -> WrappedDenoiser:
        return WrappedDenoiser(name, module, self._current_run)  # type: ignore[arg-type]

    def _new_run(self, scheduler: Any) -> PipelineRun:
        return PipelineRun(
            scheduler, self.config, self._denoisers, self._ranks, self._chooser,  # type: ignore[arg-type]
            lambda: pipeline_numbers(self.pipe),
        )  # fmt: skip


def _require_readable(scheduler: Any) -> None:
    """Read the table of a ten-step run, so that a scheduler that cannot be read is refused at once."""
    trial = copy.deepcopy(scheduler)
    try:
        trial.set_timesteps(10)
    except Exception:  # needs arguments that only the pipeline knows: read at the first call instead
        logger.debug("%s needs arguments to set its timesteps", type(scheduler).__name__)
        return
    read_scheduler(trial)


__all__ = ["Handle", "PicardHandle", "parallelize"]
