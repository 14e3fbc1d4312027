"""Sample a pipeline one way and the other, measured the same way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import parasample as ps
from parasample.bridge.load import set_sampler

OnStep = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A sampler with its number of steps, and the method that makes it parallel."""

    sampler: str
    steps: int
    method: ps.Picard

    def for_steps(self, steps: int) -> Case:
        """The same case with fewer steps; a window that would be too wide becomes "full"."""
        window = self.method.window
        if isinstance(window, int) and window >= steps:
            window = "full"
        return replace(self, steps=steps, method=replace(self.method, window=window))


@dataclass
class Sampled:
    """One call: final latents [B, ...] on the CPU, seconds of wall-clock, and what it cost."""

    latents: Tensor
    seconds: float
    rounds: int
    evaluations: int
    stats: ps.Stats | None = None


def call_pipeline(
    pipe: Any,
    prompts: list[str],
    steps: int,
    guidance: float,
    seeds: list[int],
    on_step: OnStep | None = None,
) -> tuple[Tensor, float]:
    """Final latents of one call, a seed for each prompt, and its seconds."""

    def callback(_pipe: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step()
        return tensors

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    began_at = time.perf_counter()
    output = pipe(
        prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators,
        output_type="latent", callback_on_step_end=callback,
    )  # fmt: skip
    latents = output.images.cpu()  # waits for the device
    return latents, time.perf_counter() - began_at


def sample_sequential(
    pipe: Any,
    case: Case,
    prompts: list[str],
    guidance: float,
    seeds: list[int],
    on_step: OnStep | None = None,
) -> Sampled:
    """The pipeline as it is."""
    set_sampler(pipe, case.sampler, case.steps)
    latents, seconds = call_pipeline(pipe, prompts, case.steps, guidance, seeds, on_step)
    return Sampled(latents, seconds, case.steps, case.steps * len(prompts))


def sample_parallel(
    pipe: Any,
    case: Case,
    prompts: list[str],
    guidance: float,
    seeds: list[int],
    on_step: OnStep | None = None,
) -> Sampled:
    """The same pipeline, parallelized for this call."""
    set_sampler(pipe, case.sampler, case.steps)
    with ps.parallelize(pipe, case.method) as handle:
        latents, seconds = call_pipeline(pipe, prompts, case.steps, guidance, seeds, on_step)
        stats = handle.stats
    return Sampled(latents, seconds, stats.rounds, stats.evaluations, stats)


def relative_rms(found: Tensor, expected: Tensor) -> Tensor:
    """RMS difference of each sample [B] after scaling `expected` to unit variance."""
    difference = (found - expected).flatten(1).double()
    scale = expected.flatten(1).double().std(dim=1)
    return (difference.square().mean(dim=1).sqrt() / scale).float()


def sample_rounds(stats: ps.Stats) -> list[int]:
    """Rounds that each sample of a batch took until it was finished."""
    rounds = []
    for sample in range(stats.batch):
        finished = (i for i, record in enumerate(stats.history) if record.begin[sample] >= stats.num_steps)
        rounds.append(next(finished, stats.rounds - 1) + 1)
    return rounds


@torch.no_grad()
def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Pictures [B, H, W, 3] in [0, 1] of final latents [B, C, h, w]."""
    device, dtype = pipe.vae.device, pipe.vae.dtype
    scaled = latents.to(device, dtype) / pipe.vae.config.scaling_factor
    images = [pipe.vae.decode(part).sample for part in scaled.split(64)]
    return (torch.cat(images).float().cpu() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
