"""What a rank of tests/runtime/test_ranks.py does: jobs that must succeed, faults that must be reported."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from processes import Killed
from tiny_pipelines import run, stable_diffusion
from toy import make_scheduler, mixture_epsilon, noise, seeded, start

import parasample as ps


def solve(name: str, config: ps.Picard, batch: int = 3, steps: int = 20, **changes: Any) -> dict[str, Any]:
    x_T = changes.pop("x_T", start(name, batch, 24, dtype=torch.float64))
    generator = changes.pop("generator", seeded(3))
    model = changes.pop("model", mixture_epsilon)
    solution = ps.sample(model, make_scheduler(name), x_T, config, steps, generator=generator, **changes)
    return found(solution.sample, solution.stats)


def pipeline(config: ps.Picard, seed: int = 0, scheduler: str = "ddpm") -> dict[str, Any]:
    torch.manual_seed(0)
    pipe, call = stable_diffusion(2, scheduler=make_scheduler(scheduler))
    with ps.parallelize(pipe, config) as handle:
        image = run(pipe, call, seed=seed, num_inference_steps=9)
        return found(image, handle.stats)


def found(sample: torch.Tensor, stats: ps.Stats) -> dict[str, Any]:
    return {
        "sample": sample, "rounds": stats.rounds, "evaluations": stats.evaluations, "window": stats.window,
        "bytes_sent": stats.bytes_sent,
    }  # fmt: skip


def nan_on(rank: int) -> Any:
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        output = mixture_epsilon(x, t)
        return output * torch.nan if dist.get_rank() == rank else output

    return model


def failing_on(rank: int) -> Any:
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if dist.get_rank() == rank:
            raise Killed
        return mixture_epsilon(x, t)

    return model


# Jobs that must succeed, alone and together.
JOBS = {
    "sample-ddim-7": lambda rank: solve("ddim", ps.Picard(7, 0.02)),
    "sample-ddpm-5": lambda rank: solve("ddpm", ps.Picard(5, 0.02, update="v")),
    "sample-dpm++2m-full": lambda rank: solve("dpm++2m", ps.Picard("full", 0.02), batch=1),
    "sample-published-10": lambda rank: solve("ddpm", ps.Picard(10, 0.1, "published", "published")),
    "sample-frontier": lambda rank: solve("ddim", ps.Picard(8, 0.02, states_per_round=4)),
    "sample-exact-4": lambda rank: solve("ddpm", ps.Picard(4, 0, exact=True), steps=8),
    "sample-tolerance0": lambda rank: solve("euler", ps.Picard(5, 0)),
    "pipeline-4": lambda rank: pipeline(ps.Picard(4, 0.02)),
    "pipeline-tolerance0": lambda rank: pipeline(ps.Picard(5, 0), scheduler="dpm++2m"),
    "pipeline-exact-3": lambda rank: pipeline(ps.Picard(3, 0, exact=True)),
}
# Jobs that must fail on every rank.
FAULTS = {
    "other-start": lambda rank: solve("ddim", ps.Picard(4, 0), x_T=noise(2, 24, seed=rank)),
    "other-generator": lambda rank: solve("ddpm", ps.Picard(4, 0), generator=seeded(rank)),
    "other-steps": lambda rank: solve("ddim", ps.Picard(4, 0), steps=10 + rank),
    "other-method": lambda rank: solve("ddim", ps.Picard(4 + rank, 0)),
    "other-pipeline-seed": lambda rank: pipeline(ps.Picard(3, 0), seed=rank),
    "nan-on-last": lambda rank: solve("ddim", ps.Picard(4, 0), model=nan_on(dist.get_world_size() - 1)),
    "dead-rank": lambda rank: solve("ddim", ps.Picard(4, 0), model=failing_on(dist.get_world_size() - 1)),
}
