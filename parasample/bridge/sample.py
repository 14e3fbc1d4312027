"""`sample`: parallel sampling of a bare model and scheduler, for models without a pipeline."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from parasample.bridge.auto import chooser_for, resolve_window
from parasample.bridge.denoiser import RowSelector
from parasample.bridge.device import require_device_control, solve_on_device
from parasample.bridge.schedulers import read_scheduler
from parasample.bridge.solver import make_solver
from parasample.config import Picard
from parasample.errors import ConfigError
from parasample.runtime.device_rounds import DeviceRounds
from parasample.runtime.picard import PicardSolver
from parasample.runtime.stats import Stats
from parasample.runtime.transports import default_ranks


@dataclass(frozen=True)
class Solution:
    """What `sample` returns: `sample` [B, ...] in the dtype of `x_T`, and the costs."""

    sample: Tensor
    stats: Stats


@torch.no_grad()
def sample(
    model: Callable[..., Any],
    scheduler: Any,
    x_T: Tensor,
    method: Picard,
    num_inference_steps: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    step_kwargs: Mapping[str, Any] | None = None,
    shared_kwargs: Mapping[str, Any] | None = None,
) -> Solution:
    """Sample `model` with a diffusers scheduler, many steps at a time.

    Args:
        model: `model(x, t, **model_kwargs, **shared_kwargs)` gives the model output for inputs x [n, ...]
            and timesteps t [n]: a tensor shaped as x, a tuple starting with one, or an object with `.sample`.
        scheduler: a diffusers scheduler; it is copied, not changed.
        x_T: the starting noise [B, ...], floating point, in the scheduler's scale: times
            `scheduler.init_noise_sigma` where it has one, which may depend on its timesteps (call
            `set_timesteps` before you read it).
        method: `ps.Picard(...)`.
        num_inference_steps: steps; None uses the timesteps that the scheduler has been set to.
        model_kwargs: conditioning; tensors with B rows are matched to their samples, all else is passed as
            it is.
        generator: for stochastic schedulers, one or one per sample; consumed as sequential sampling would.
        step_kwargs: further arguments of `scheduler.step`, such as `eta`.
        shared_kwargs: conditioning passed to every call as it is, never matched to samples, even if it has B
            rows: position tables, codebooks.

    Raises:
        ConfigError: bad arguments. UnsupportedPipelineError: a scheduler that cannot be read.
        DivergedError: a model output that is not finite. TransportError: a rank that does not answer.
    """
    if not isinstance(method, Picard):
        raise ConfigError(f"expected ps.Picard(...) as method, found {type(method).__name__}")
    _require_noise(x_T)
    if isinstance(generator, list) and len(generator) != x_T.shape[0]:
        raise ConfigError(
            f"expected one generator or {x_T.shape[0]} (one per sample), found a list of {len(generator)}"
        )
    _require(model, callable(model), "a callable model(x, t, **model_kwargs)", "model")
    usable = (
        not isinstance(scheduler, type) and hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "step")
    )
    _require(scheduler, usable, "an instance of a diffusers scheduler", "scheduler")
    generators = generator if isinstance(generator, list) else [generator]
    for each in generators:
        _require(each, each is None or isinstance(each, torch.Generator), "torch.Generator()", "generator")
    mappings = {"model_kwargs": model_kwargs, "shared_kwargs": shared_kwargs, "step_kwargs": step_kwargs}
    for name, value in mappings.items():
        _require(value, value is None or isinstance(value, Mapping), "a mapping of argument names", name)
    _require_step_arguments(scheduler, step_kwargs or {})
    both = sorted((model_kwargs or {}).keys() & (shared_kwargs or {}).keys())
    if both:
        raise ConfigError(
            f"{', '.join(both)} is in model_kwargs and in shared_kwargs; pass each argument in one of them"
        )
    began_at = time.perf_counter()
    scheduler = copy.deepcopy(scheduler)
    if num_inference_steps is not None:
        scheduler.set_timesteps(_whole(num_inference_steps), device=x_T.device)
    elif scheduler.num_inference_steps is None and not getattr(scheduler, "custom_timesteps", False):
        raise ConfigError(
            "the scheduler has no timesteps; pass num_inference_steps or call set_timesteps first"
        )
    first = getattr(scheduler, "begin_index", None) or 0  # set to start from a noised sample
    timesteps = scheduler.timesteps[first:].to(x_T.device)
    ranks, arguments = default_ranks(), dict(step_kwargs or {})
    require_device_control(method, ranks)
    conditioning, shared = dict(model_kwargs or {}), dict(shared_kwargs or {})

    def call(inputs: Tensor, t: Tensor, **more: Any) -> Tensor:
        output = _tensor(model(inputs, t, **more))
        if not output.is_floating_point():
            raise ConfigError(
                f"expected a floating point model output, found {output.dtype}; return real numbers, such as "
                "output.float()"
            )
        if output.shape != inputs.shape:
            raise ConfigError(
                f"expected a model output of shape {tuple(inputs.shape)}, as its input, found "
                f"{tuple(output.shape)}; return one output per row, of the shape of x_T's rows"
            )
        return output

    solver: PicardSolver | DeviceRounds
    if method.control == "host":
        chooser = chooser_for(model, scheduler, x_T, method)
        asked, method = method, resolve_window(method, len(timesteps), chooser, ranks)
        read = read_scheduler(scheduler, step_kwargs=arguments)
        solver = make_solver(read, scheduler, first, x_T, x_T.shape[0], method, generator, arguments, ranks)
        _solve(solver, call, timesteps, x_T, conditioning, shared)
        if asked.window == "auto":
            chooser.observe(solver)
    else:
        read = read_scheduler(scheduler, step_kwargs=arguments)
        solver = solve_on_device(call, read, x_T, timesteps, method, generator, conditioning, shared)
    found = solver.state(solver.num_steps).to(x_T.dtype, copy=True)
    solver.stats.seconds = time.perf_counter() - began_at
    return Solution(found, solver.stats)


def _solve(
    solver: PicardSolver,
    call: Callable[..., Tensor],
    timesteps: Tensor,
    x_T: Tensor,
    conditioning: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> None:
    selector, batch = RowSelector(), x_T.shape[0]
    while not solver.done:
        part = solver.open_round()
        rows = {k: selector.select(k, v, batch, part.samples) for k, v in conditioning.items()}
        inputs = solver.model_inputs(part).to(x_T.dtype)
        solver.close_round(part, call(inputs, timesteps[part.steps], **rows, **shared))


def _require_noise(x_T: Any) -> None:
    if not isinstance(x_T, Tensor):
        raise ConfigError(
            f"expected a tensor as x_T, found {type(x_T).__name__}; pass torch.randn(batch, ...)"
        )
    if not x_T.is_floating_point():
        raise ConfigError(f"expected floating point x_T, found {x_T.dtype}; pass Gaussian noise, x_T.float()")
    if x_T.ndim < 2:
        raise ConfigError(
            f"expected x_T of shape [batch, ...], found {tuple(x_T.shape)}; add a batch dimension"
        )
    if x_T.numel() == 0:
        raise ConfigError(f"expected at least one sample in x_T, found shape {tuple(x_T.shape)}; pass noise")
    if not x_T.isfinite().all():
        raise ConfigError(
            "x_T has NaN or infinite values; pass finite noise, such as torch.randn(batch, ...)"
        )


def _require_step_arguments(scheduler: Any, step_kwargs: Mapping[str, Any]) -> None:
    parameters = inspect.signature(scheduler.step).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = list(parameters)[3:]  # after output, timestep and sample
    for name, value in step_kwargs.items():
        if name not in taken and not anything:
            raise ConfigError(
                f"step_kwargs has {name!r}, which {type(scheduler).__name__}.step does not take; pass some "
                f"of {', '.join(taken)}, or nothing"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"step_kwargs has {name}={value}; pass a finite number")


def _whole(num_inference_steps: Any) -> int:
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, Integral):
        raise ConfigError(
            f"num_inference_steps={num_inference_steps!r} is not a whole number; pass an int, such as 50"
        )
    if num_inference_steps < 1:
        raise ConfigError(f"num_inference_steps={num_inference_steps} is below 1; pass at least 1")
    return int(num_inference_steps)


def _require(value: Any, holds: bool, expected: str, name: str) -> None:
    if not holds:
        kind = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise ConfigError(f"{name}: expected {expected}, found {kind}; pass {expected}")


def _tensor(output: Any) -> Tensor:
    found = output[0] if isinstance(output, tuple) and output else getattr(output, "sample", output)
    if not isinstance(found, Tensor):
        raise ConfigError(
            "expected the model to return a tensor, a tuple starting with one or an object with .sample, "
            f"found {type(output).__name__}"
        )
    return found
