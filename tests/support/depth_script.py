"""What a rank of tests/runtime/test_depth_ranks.py does: pipelines in depth that must agree, and faults."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tiny_pipelines import PIPELINES, run, stable_diffusion

import parasample as ps
from parasample.plan.simulate import planned_bytes


def sample(name: str, config: ps.Async, seed: int = 0, **call: Any) -> dict[str, Any]:
    """Two calls of a tiny pipeline, sequential before and after, and what the second cost."""
    torch.manual_seed(0)
    pipe, arguments = PIPELINES[name]()
    arguments = arguments | call
    before = run(pipe, arguments, seed)
    with ps.parallelize(pipe, config) as handle:
        first = run(pipe, arguments, seed)
        second = run(pipe, arguments, seed)
        stats, planned = handle.stats, planned_by_step(handle)
    return {
        "sequential": before, "sample": first, "again": second, "restored": run(pipe, arguments, seed),
        "bytes": [record.bytes_sent for record in stats.history], "rounds": stats.rounds,
        "planned": planned,
    }  # fmt: skip


def planned_by_step(handle: Any) -> list[int]:
    """Bytes that this rank sends in each step by the plans of the last call."""
    ranks = [planned_bytes(schedule)[dist.get_rank()] for schedule in handle.schedules]
    return [sum(step) for step in zip(*ranks, strict=True)]


def other_prompt(rank: int, size: int) -> dict[str, Any]:
    """Each rank asks for another picture."""
    return sample("StableDiffusion", ps.Async(size), prompt_embeds=torch.full((1, 5, 8), float(rank)))


def sizes_change(config: ps.Async) -> dict[str, Any]:
    """One handle through calls of other batch sizes, step counts and resolutions, back to the first."""
    torch.manual_seed(0)
    pipe, call = stable_diffusion(2)
    bigger = call | {"height": 16, "width": 16}
    single = {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in call.items()}
    calls = ((call, 6), (bigger, 6), (single, 4), (call, 6))
    with ps.parallelize(pipe, config):
        samples = [run(pipe, arguments, num_inference_steps=steps) for arguments, steps in calls]
    return {"sample": samples[0], "back": samples[3], "shapes": [tuple(s.shape) for s in samples]}


class Broken(Exception):
    pass


def broken_on(rank: int) -> dict[str, Any]:
    """The denoiser of one rank fails in the middle; the pipeline must work again afterwards."""
    torch.manual_seed(0)
    pipe, call = stable_diffusion()
    expected = run(pipe, call)
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4 and dist.get_rank() == rank:
            raise Broken("the model failed")

    hook = pipe.unet.time_embedding.register_forward_hook(fail)
    try:
        with ps.parallelize(
            pipe, ps.Async(components=dist.get_world_size(), split=SPLIT[dist.get_world_size()])
        ):
            run(pipe, call)
    except Exception as error:
        hook.remove()
        found = {"error": type(error).__name__, "message": str(error)}
        return found | {"restored": run(pipe, call), "sequential": expected}
    return {"error": "none"}


FLUX_SPLIT = {"x_embedder": 0, "norm_out": 1, "transformer_blocks": 0, "single_transformer_blocks": 1}
SPLIT: dict[int, dict[str, int]] = {
    2: {"down_blocks": 0, "mid_block": 0, "up_blocks": 1},
    3: {"down_blocks": 0, "mid_block": 1, "up_blocks": 2},
}
# The last component has the first and the last blocks; of three the second lies between the others.
NESTED: dict[int, dict[str, int]] = {
    2: {"down_blocks.0": 1, "down_blocks.1": 0, "mid_block": 0, "up_blocks": 1},
    3: {"down_blocks.0": 2, "down_blocks.1": 1, "mid_block": 0, "up_blocks.0": 1, "up_blocks.1": 2},
}


def jobs(size: int) -> dict[str, Any]:
    """By name, for a group of `size` ranks."""
    everything = 100  # more than there are steps: all of them
    return {
        "warm-up-all": lambda rank: sample("StableDiffusion", ps.Async(size, warm_up=everything)),
        "published": lambda rank: sample("StableDiffusion", ps.Async(size, extrapolate=None)),
        "stride": lambda rank: sample("StableDiffusion", ps.Async(size - 1, stride=2, warm_up=2)),
        "linear": lambda rank: sample("StableDiffusionXL", ps.Async(size, warm_up=2, extrapolate="linear")),
        "latents": lambda rank: sample("StableDiffusion", ps.Async(size, warm_up=2, extrapolate="latents")),
        "nested": lambda rank: sample(
            "StableDiffusion", ps.Async(size, warm_up=2, split=NESTED[size], extrapolate="latents")
        ),
        "nested-stride": lambda rank: sample(
            "StableDiffusion", ps.Async(2, stride=size - 1, split=NESTED[2], extrapolate="latents")
        ),
        "two-calls": lambda rank: sample("Flux-true-cfg", ps.Async(2, split=FLUX_SPLIT, stride=size - 1)),
        "sizes": lambda rank: sizes_change(ps.Async(size, split=SPLIT[size])),
        "other-prompt": lambda rank: other_prompt(rank, size),
        "other-seed": lambda rank: sample("StableDiffusion", ps.Async(size), seed=rank),
        "other-method": lambda rank: sample("StableDiffusion", ps.Async(size, warm_up=1 + rank)),
        "other-steps": lambda rank: sample("StableDiffusion", ps.Async(size), num_inference_steps=5 + rank),
        "wrong-ranks": lambda rank: sample("StableDiffusion", ps.Async(size + 1)),
        "broken": lambda rank: broken_on(size - 1),
    }  # fmt: skip
