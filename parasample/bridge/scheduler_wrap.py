"""The scheduler that a parallelized pipeline sees: of its own class, with steps that a run has a say in."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from parasample.bridge.timesteps import TimestepSequence, untraced
from parasample.errors import ConfigError


class StepCall:
    """One call of `scheduler.step`, its arguments by name.

    Attributes:
        original: the scheduler's own class.
        output, timestep, sample, generator, as_dict: as the pipeline gave them.
        settings: what else it gave, such as DDIM's eta.
    """

    def __init__(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.original = original
        self._names = _step_parameters(original)
        given = dict(zip(self._names, args, strict=False)) | kwargs
        self._given = {name: untraced(value) for name, value in given.items()}
        if len(args) > len(self._names) or not set(self._names[:3]) <= self._given.keys():
            inspect.signature(original.step).bind(
                None, *args, **kwargs
            )  # raises what the scheduler itself would
        rest = dict(self._given)
        self.output, self.timestep, self.sample = (rest.pop(name) for name in self._names[:3])
        self.as_dict: bool = rest.pop("return_dict", True)
        self.generator = rest.pop("generator", None)
        self.settings: dict[str, Any] = rest

    def take(self, scheduler: Any, output: Tensor) -> Any:
        """The scheduler's own step with another model output."""
        return self.original.step(scheduler, **self._given | {self._names[0]: output})  # type: ignore[attr-defined]


@functools.cache
def _step_parameters(scheduler_class: type) -> list[str]:
    return list(inspect.signature(scheduler_class.step).parameters)[1:]  # type: ignore[attr-defined]


class Run(Protocol):
    """One call of a pipeline, as its scheduler sees it."""

    active: bool

    def scale_input(self, sample: Tensor) -> Tensor | None:
        """What `scheduler.scale_model_input` returns, or None to let the scheduler answer for itself."""
        ...

    def take_step(self, scheduler: Any, call: StepCall) -> Any:
        """What `scheduler.step` returns."""
        ...


class Owner(Protocol):
    """Who made the wrapped scheduler."""

    @property
    def run(self) -> Run | None: ...

    def begin_run(self, scheduler: Any) -> None:
        """`set_timesteps` was called; `scheduler` is an unwrapped copy as it left it."""
        ...


class WrappedScheduler:
    """Marks schedulers made by `wrap_scheduler`."""


def wrap_scheduler(scheduler: Any, handle: Owner) -> Any:
    """An instance of a subclass of the scheduler's own class: the same signatures, config and attributes.

    It works on a copy of the scheduler's state, so the original is untouched.
    """
    original = type(scheduler)
    state = copy.deepcopy(scheduler.__dict__)

    @functools.wraps(original.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        num_steps = args[0] if args else kwargs.get("num_inference_steps")
        if isinstance(num_steps, float):
            raise ConfigError(
                f"num_inference_steps={num_steps} is not a whole number; pass an int, such as 50"
            )
        if isinstance(num_steps, int) and num_steps < 1:
            raise ConfigError(f"num_inference_steps={num_steps} is below 1; pass at least 1")
        original.set_timesteps(self, *args, **kwargs)
        handle.begin_run(unwrapped_copy(self, original))

    @functools.wraps(original.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = handle.run
        if run is None or not run.active:
            return original.step(self, *args, **kwargs)
        return run.take_step(self, StepCall(original, args, kwargs))

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
            scaled = run.scale_input(sample) if run is not None and run.active else None
            if scaled is not None:
                return scaled
            return original.scale_model_input(self, sample, *map(untraced, args), **kwargs)

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


def step_output(
    original: type, state: Tensor, prediction: Callable[[], Tensor], as_dict: bool, last: bool
) -> Any:
    """What the scheduler's own step returns: the state after it, and the data prediction where it returns
    one.
    """
    output = _output_class(original)
    names = [field.name for field in dataclasses.fields(output)]
    values = dict.fromkeys(names)
    values["prev_sample"] = state
    for name in ("pred_original_sample", "denoised"):
        if name in values:
            # Consistency models end on their last prediction: it is the sample.
            values[name] = state if last and name == "denoised" else prediction()
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


def unwrapped_copy(scheduler: Any, original_class: type) -> Any:
    """A deep copy of a wrapped scheduler as an instance of its own class."""
    plain: Any = object.__new__(original_class)
    plain.__dict__.update(copy.deepcopy(scheduler.__dict__))
    return plain
