"""What a rank of tests/runtime/test_sharded_ranks.py does: pipelines whose weights are spread over ranks."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.distributed as dist
from depth_script import planned_by_step
from tiny_pipelines import PIPELINES, run, stable_diffusion, stable_diffusion_3
from torch import Tensor, nn

import parasample as ps
from parasample.bridge.depth import reading
from parasample.plan.partition import report

SPLIT = {"down_blocks": 0, "mid_block": 0, "up_blocks": 1}
LAYERS = {
    "pos_embed": 0,
    "time_text_embed": 0,
    "context_embedder": 0,
    "transformer_blocks.0": 0,
    "transformer_blocks.1": 1,
    "norm_out": 1,
    "proj_out": 1,
}
# Component 1 reads component 0, which reads component 1.
NESTED = {"down_blocks.0": 1, "down_blocks.1": 0, "mid_block": 0, "up_blocks": 1}
NESTED_LAYERS = LAYERS | {"transformer_blocks.0": 1, "transformer_blocks.1": 0}


def tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def weight_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(model))


def copies(model: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors(model)]


def same_bits(model: nn.Module, before: list[Tensor]) -> bool:
    pairs = list(zip(tensors(model), before, strict=True))
    return all(torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride() for a, b in pairs)


def sample(name: str, config: ps.Async, **call: Any) -> dict[str, Any]:
    """Two calls with sharded weights, one sequential, and what became of the weights."""
    torch.manual_seed(0)
    pipe, arguments = PIPELINES[name]()
    arguments = arguments | call
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    sequential, before = run(pipe, arguments), copies(denoiser)
    with ps.parallelize(pipe, config) as handle:
        first, second = run(pipe, arguments), run(pipe, arguments)
        held, stats = weight_bytes(denoiser), handle.stats
        planned = planned_by_step(handle)
    return {
        "sequential": sequential, "sample": first, "again": second, "restored": same_bits(denoiser, before),
        "held": held, "total": weight_bytes(denoiser),
        "bytes": [record.bytes_sent for record in stats.history], "planned": planned,
    }  # fmt: skip


def unsharded(config: dict[str, Any]) -> dict[str, Any]:
    """Both ways with the same split."""
    found = sample("StableDiffusion3", ps.Async(2, shard_weights=True, **config))
    torch.manual_seed(0)
    pipe, call = stable_diffusion_3()
    with ps.parallelize(pipe, ps.Async(2, **config)):
        return found | {"unsharded": run(pipe, call)}


def found_late(split: dict[str, int], constant: str, value: int, eta: float) -> dict[str, Any]:
    """Only the first step shows that the sampler draws noise, so that components work on something else.

    `constant` of the rule for that is `value` in the first of two calls, and in one without sharding.
    """
    torch.manual_seed(0)
    pipe, call = stable_diffusion(eta=eta)
    sequential, usual = run(pipe, call), getattr(reading, constant)
    try:
        with ps.parallelize(pipe, ps.Async(2, split=split, shard_weights=True)):
            setattr(reading, constant, value)
            found = run(pipe, call)
            setattr(reading, constant, usual)
            known = run(pipe, call)
        setattr(reading, constant, value)
        with ps.parallelize(pipe, ps.Async(2, split=split)):
            unsharded = run(pipe, call)
    finally:
        setattr(reading, constant, usual)
    return {"sample": found, "known": known, "unsharded": unsharded, "sequential": sequential}


def sizes_change() -> dict[str, Any]:
    """One handle through calls of other resolutions, back to the first."""
    torch.manual_seed(0)
    pipe, call = stable_diffusion_3()
    calls = (call, call | {"height": 16, "width": 16}, call)
    expected = [run(pipe, arguments) for arguments in calls]
    with ps.parallelize(pipe, ps.Async(2, warm_up=100, shard_weights=True)):
        return {"samples": [run(pipe, arguments) for arguments in calls], "expected": expected}


class Broken(Exception):
    pass


def broken_on(rank: int, at_call: int) -> dict[str, Any]:
    """The denoiser of one rank fails; the weights must come back on all, and the pipeline work again."""
    torch.manual_seed(0)
    pipe, call = stable_diffusion_3()
    expected, before = run(pipe, call), copies(pipe.transformer)
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at_call and dist.get_rank() == rank:
            raise Broken("the model failed")

    found: dict[str, Any] = {"error": "none"}
    hook = None
    try:
        with ps.parallelize(pipe, ps.Async(2, split=LAYERS, shard_weights=True)):
            run(pipe, call)  # finds the split: calls of the model that are none of the loop's
            hook = pipe.transformer.time_text_embed.register_forward_hook(fail)
            run(pipe, call)
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error), "calls": calls}
    finally:
        if hook is not None:
            hook.remove()
    return found | {
        "restored": same_bits(pipe.transformer, before),
        "works": torch.equal(run(pipe, call), expected),
    }


def resident_bytes() -> int:
    """Memory of this process that no file backs."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def memory() -> dict[str, Any]:
    """A model of 70 MB: what a rank holds of it, counted and as the kernel sees it."""
    torch.manual_seed(dist.get_rank())
    pipe, call = stable_diffusion_3()
    pipe.transformer = model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=64,
        num_attention_heads=8, caption_projection_dim=512, joint_attention_dim=8, pooled_projection_dim=8,
        pos_embed_max_size=8,
    ).eval()  # fmt: skip
    before, whole, full = copies(model), weight_bytes(model), resident_bytes()
    handle = ps.parallelize(pipe, ps.Async(2, warm_up=2, shard_weights=True))
    aside, none = weight_bytes(model), resident_bytes()
    run(pipe, call, num_inference_steps=3)
    held, part = weight_bytes(model), resident_bytes()
    cut = handle._denoisers[0].cut  # type: ignore[attr-defined]
    found = report(cut.graph, cut.split)
    handle.restore()
    return {
        "whole": whole, "aside": aside, "held": held, "shares": found.weight_shares,
        "max_compute": found.max_compute, "freed": full - none,
        "resident": part - none, "restored": same_bits(model, before),
    }  # fmt: skip


def jobs() -> dict[str, Any]:
    """By name, for a group of two ranks."""
    all_steps = {"warm_up": 100, "shard_weights": True}  # more than there are
    return {
        "warm-up-all": lambda rank: sample("StableDiffusion", ps.Async(2, split=NESTED, **all_steps)),
        "transformer": lambda rank: sample("StableDiffusion3", ps.Async(2, **all_steps)),
        "two-calls": lambda rank: sample("Flux-true-cfg", ps.Async(2, **all_steps)),
        "ahead": lambda rank: sample("StableDiffusion3", ps.Async(2, warm_up=2, shard_weights=True)),
        "stride": lambda rank: sample("StableDiffusion3", ps.Async(1, stride=2, shard_weights=True)),
        "published": lambda rank: unsharded({"split": NESTED_LAYERS, "extrapolate": None}),
        "linear": lambda rank: unsharded({"split": LAYERS, "extrapolate": "linear", "warm_up": 2}),
        "nested-ahead": lambda rank: unsharded({"split": NESTED_LAYERS, "extrapolate": "latents"}),
        "found-late-ahead": lambda rank: found_late(SPLIT, "QUIET_BATCHES_AHEAD", 0, 1.0),
        "found-late-stale": lambda rank: found_late(NESTED, "NOISY_STEPS_AHEAD", 0, 1.0),
        "sizes": lambda rank: sizes_change(),
        "broken-first-step": lambda rank: broken_on(1, 1),
        "broken-later": lambda rank: broken_on(0, 4),
        "memory": lambda rank: memory(),
    }
