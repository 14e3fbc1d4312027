"""A smooth model without weights, schedulers by name, and the sequential loop to compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

# name: the scheduler, and what the caller passes to `step` (or to the pipeline, which passes it on).
SCHEDULERS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "ddim": (lambda: diffusers.DDIMScheduler(clip_sample=False, **SCALED_LINEAR), {}),
    "ddim-eta1": (lambda: diffusers.DDIMScheduler(clip_sample=False, **SCALED_LINEAR), {"eta": 1.0}),
    "ddim-clip": (lambda: diffusers.DDIMScheduler(clip_sample=True, **SCALED_LINEAR), {}),
    "ddpm": (lambda: diffusers.DDPMScheduler(clip_sample=False, **SCALED_LINEAR), {}),
    "ddpm-clip": (lambda: diffusers.DDPMScheduler(clip_sample=True, **SCALED_LINEAR), {}),
    "euler": (lambda: diffusers.EulerDiscreteScheduler(**SCALED_LINEAR), {}),
    "euler-ancestral": (lambda: diffusers.EulerAncestralDiscreteScheduler(**SCALED_LINEAR), {}),
    "heun": (lambda: diffusers.HeunDiscreteScheduler(**SCALED_LINEAR), {}),
    "dpm++2m": (lambda: diffusers.DPMSolverMultistepScheduler(**SCALED_LINEAR), {}),
    "sde-dpm++": (
        lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **SCALED_LINEAR), {}
    ),
    "unipc": (lambda: diffusers.UniPCMultistepScheduler(**SCALED_LINEAR), {}),
    "pndm": (lambda: diffusers.PNDMScheduler(skip_prk_steps=True, **SCALED_LINEAR), {}),
    "pndm-prk": (lambda: diffusers.PNDMScheduler(**SCALED_LINEAR), {}),  # a history of 13 columns
    "lcm": (lambda: diffusers.LCMScheduler(**SCALED_LINEAR), {}),
    "flow-euler": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), {}),
}  # fmt: skip


def make_scheduler(name: str) -> Any:
    return SCHEDULERS[name][0]()


def step_arguments(name: str) -> dict[str, Any]:
    return dict(SCHEDULERS[name][1])


def mixture_epsilon(x: Tensor, t: Tensor, spread: float | Tensor = 0.3) -> Tensor:
    """The noise prediction for data that is +1 or -1, each blurred by `spread`, under a cosine schedule.

    Element by element, so that a row's result does not depend on the batch it is in. x [n, ...], t [n] in
    0..1000.
    """
    angle = (t.double() / 1000).clamp(0.01, 0.985) * torch.pi / 2
    alpha, sigma = (f(angle).to(x.dtype).view(-1, *(1,) * (x.ndim - 1)) for f in (torch.cos, torch.sin))
    variance = alpha**2 * spread**2 + sigma**2
    mean = torch.tanh(alpha * x / variance)
    x0 = mean * (sigma**2 / variance) + alpha * spread**2 * x / variance
    return (x - alpha * x0) / sigma


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


@torch.no_grad()
def sequential(
    model: Callable[..., Tensor],
    scheduler: Any,
    x_T: Tensor,
    num_steps: int,
    generator: Any = None,
    **step_kwargs: Any,
) -> Tensor:
    """What a user's own sampling loop does."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps)
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    extra = {"generator": generator} if takes_generator else {}
    x = x_T
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = model(scaled, t.expand(x.shape[0]))
        x = scheduler.step(output, t, x, return_dict=False, **extra, **step_kwargs)[0]
    return x


def start(scheduler_name: str, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Starting noise in the scheduler's scale."""
    scheduler = make_scheduler(scheduler_name)
    scheduler.set_timesteps(10)
    return noise(*shape, seed=seed, dtype=dtype) * getattr(scheduler, "init_noise_sigma", 1.0)
