"""`parallelize`: make a diffusers pipeline sample in parallel, without changing or copying it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import logging
import sys
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from parasample.bridge.auto import WindowChooser
from parasample.bridge.conditioning import pipeline_numbers
from parasample.bridge.denoiser import WrappedDenoiser, takes_timestep
from parasample.bridge.run import PipelineRun, unwrapped_copy
from parasample.bridge.schedulers import read_scheduler
from parasample.bridge.schedulers.fingerprint import fingerprint
from parasample.bridge.timesteps import TimestepSequence
from parasample.config import Picard
from parasample.errors import ConfigError, UnsupportedPipelineError
from parasample.runtime.stats import Stats
from parasample.runtime.transports import default_ranks

logger = logging.getLogger(__name__)


def parallelize(pipe: Any, *methods: Picard) -> Handle:
    """Make every call of `pipe` sample in parallel until `handle.restore()`.

    Args:
        pipe: a diffusers pipeline, or any object with a `scheduler` (diffusers' interface) and denoisers
            among its attributes whose forward takes a timestep. It is called as before, with any arguments.
        methods: `ps.Picard(...)`. Under `torchrun` the model evaluations of a round are shared by all ranks;
            every rank makes the same call, with a generator of the same seed, and gets the same result.

    Returns:
        A handle with `stats` of the last call and `restore()`; also a context manager that restores on exit.

    Raises:
        ConfigError: for methods that do not fit together, or a pipeline that is parallelized already.
        UnsupportedPipelineError: when the pipeline or its scheduler cannot be sampled in parallel, with
            the reason.
    """
    if len(methods) != 1 or not isinstance(methods[0], Picard):
        found = ", ".join(
            f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
            for method in methods
        )
        found = found or "nothing"
        raise ConfigError(f"expected one method, found {found}; pass ps.Picard(...)")
    if methods[0].control != "host":
        raise ConfigError(
            f"control={methods[0].control!r} is for ps.sample: a pipeline's own loop asks for every state; "
            'pass control="host"'
        )
    return Handle(pipe, methods[0])


class Handle:
    """A parallelized pipeline: `stats` of its last call, and the way back."""

    def __init__(self, pipe: Any, config: Picard) -> None:
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
        _require_readable(scheduler)
        self.pipe = pipe
        self.config = config
        self._scheduler = scheduler
        self._scheduler_was = _state_of(scheduler)
        self._run: PipelineRun | None = None
        self._stats = Stats()
        self._ranks = default_ranks()
        self._chooser = WindowChooser()
        self._wrapped = wrap_scheduler(scheduler, self)
        self._denoisers = [
            WrappedDenoiser(name, module, self._current_run) for name, module in modules.items()
        ]
        # Past the pipeline's __setattr__, which would rewrite its config with our class name.
        object.__setattr__(pipe, "scheduler", self._wrapped)

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

    def __enter__(self) -> Handle:
        return self

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
        self._run = PipelineRun(
            scheduler, self.config, self._denoisers, self._ranks, self._chooser,
            lambda: pipeline_numbers(self.pipe),
        )  # fmt: skip

    @property
    def run(self) -> PipelineRun | None:
        return self._run

    def _current_run(self) -> PipelineRun | None:
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


def _require_readable(scheduler: Any) -> None:
    """Read the table of a ten-step run, so that a scheduler that cannot be read is refused at once."""
    trial = copy.deepcopy(scheduler)
    try:
        trial.set_timesteps(10)
    except Exception:  # needs arguments that only the pipeline knows: read at the first call instead
        logger.debug("%s needs arguments to set its timesteps", type(scheduler).__name__)
        return
    read_scheduler(trial)


# ---------------------------------------------------------------------- the scheduler the pipeline sees


class WrappedScheduler:
    """Marks schedulers made by `wrap_scheduler`."""


def wrap_scheduler(scheduler: Any, handle: Handle) -> Any:
    """An instance of a subclass of the scheduler's own class: the same signatures, config and attributes.

    It works on a copy of the scheduler's state, so the original is untouched.
    """
    original = type(scheduler)
    state = copy.deepcopy(scheduler.__dict__)

    @functools.wraps(original.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        num_steps = args[0] if args else kwargs.get("num_inference_steps")
        if isinstance(num_steps, int) and num_steps < 1:
            raise ConfigError(f"num_inference_steps={num_steps} is below 1; pass at least 1")
        original.set_timesteps(self, *args, **kwargs)
        handle.begin_run(unwrapped_copy(self, original))

    signature = inspect.signature(original.step)
    parameters = list(signature.parameters)[1:]

    @functools.wraps(original.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = handle.run
        if run is None or not run.active:
            return original.step(self, *args, **kwargs)
        if run.solver is None:
            signature.bind(self, *args, **kwargs)  # wrong arguments raise what the scheduler itself would
        given = dict(zip(parameters, args, strict=False)) | kwargs
        output, timestep, sample = (given.pop(name) for name in parameters[:3])
        as_dict, generator = given.pop("return_dict", True), given.pop("generator", None)
        state_after = run.step(output, timestep, sample, generator, given)
        if hasattr(self, "_step_index"):
            self._step_index = run.first_index + run.row
        result = _step_output(original, run, state_after, as_dict)
        if not run.active:
            run.finish()
        return result

    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(unwrapped_copy(self, original), memo)  # a copy belongs to no pipeline of ours

    def reduce(self: Any, protocol: Any) -> Any:
        return _rebuilt, (original, copy.deepcopy(self.__dict__))

    names: dict[str, Any] = {
        "set_timesteps": set_timesteps, "step": step, "timesteps": _timesteps, "__deepcopy__": deepcopy,
        "__reduce_ex__": reduce,
    }  # fmt: skip
    if hasattr(original, "scale_model_input"):

        @functools.wraps(original.scale_model_input)
        def scale_model_input(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            run = handle.run
            if run is None or not run.active or run.solver is None:
                return original.scale_model_input(self, sample, *args, **kwargs)
            return run.scale_input(sample)

        names["scale_model_input"] = scale_model_input

    wrapped: Any = object.__new__(type(original.__name__, (WrappedScheduler, original), names))
    wrapped.__dict__.update(state)
    return wrapped


def _rebuilt(scheduler_class: type, state: dict[str, Any]) -> Any:
    scheduler: Any = object.__new__(scheduler_class)
    scheduler.__dict__.update(state)
    return scheduler


def _get_timesteps(self: Any) -> Tensor:
    value = self.__dict__["timesteps"]
    return TimestepSequence.wrap(value) if isinstance(value, Tensor) else value


def _set_timesteps(self: Any, value: Any) -> None:
    self.__dict__["timesteps"] = value


_timesteps = property(_get_timesteps, _set_timesteps)


def _step_output(original: type, run: PipelineRun, state: Tensor, as_dict: bool) -> Any:
    """What the scheduler's own step returns: the state, and the data prediction where it returns one."""
    output = _output_class(original)
    names = [field.name for field in dataclasses.fields(output)]
    values = dict.fromkeys(names)
    values["prev_sample"] = state
    for name in ("pred_original_sample", "denoised"):
        if name in values:
            # Consistency models end on their last prediction: it is the sample.
            last = name == "denoised" and not run.active
            values[name] = state if last else run.data_prediction(state)
    return output(**values) if as_dict else tuple(values.values())


@functools.cache
def _output_class(scheduler_class: type) -> type:
    """The dataclass of the scheduler's module that its `step` returns, or the general one."""
    from diffusers.schedulers.scheduling_utils import SchedulerOutput

    for parent in scheduler_class.__mro__:
        found = vars(sys.modules[parent.__module__]).get(f"{parent.__name__}Output")
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
    return SchedulerOutput
