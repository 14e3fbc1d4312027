"""What a rank of tests/runtime/test_depth_coverage.py does: every pipeline, sequential and in depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from more_pipelines import MORE_PIPELINES
from tiny_pipelines import PIPELINES, run
from torch import Tensor
from traced_once import traced_once

import parasample as ps

ALL = PIPELINES | MORE_PIPELINES
COVERED = [
    "StableDiffusion", "StableDiffusionXL", "StableDiffusionXL-inpainting", "StableDiffusion-upscaling",
    "StableDiffusionXL-ControlNet", "StableDiffusion3", "AnimateDiff", "StableVideoDiffusion", "Flux",
    "Flux-true-cfg", "DiT", "PixArt", "Sana", "Wan", "Wan-two-transformers", "CogVideoX",
]  # fmt: skip
STRIDED = ["StableDiffusionXL", "AnimateDiff", "Wan-two-transformers"]
FOUR_TOO = {"StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "Wan"}
STEPS = 3


def batches(name: str) -> tuple[int, ...]:
    """The batch sizes to try: for some four samples, too."""
    return (1, 4) if name in FOUR_TOO else (1,)


def of_batch(call: dict[str, Any], batch: int) -> dict[str, Any]:
    """The arguments of a call for `batch` samples, each asked for the first one's content."""

    def repeated(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[:1].repeat(batch, *(1,) * (value.ndim - 1))
        return value[:1] * batch if isinstance(value, list) else value

    return {name: repeated(value) for name, value in call.items()}


def cover(name: str, components: int, stride: int, warm_up: int) -> dict[str, Any]:
    """[batches] the samples of a pipeline: sequential, and with warm-ups of all and of few steps."""
    torch.manual_seed(0)
    pipe, arguments = ALL[name]()
    calls = [of_batch(arguments, batch) | {"num_inference_steps": STEPS} for batch in batches(name)]
    found = {"sequential": [run(pipe, call) for call in calls]}
    with traced_once(id):
        for way, steps in (("all", 100), ("few", warm_up)):
            with ps.parallelize(pipe, ps.Async(components, stride, warm_up=steps)):
                found[way] = [run(pipe, call) for call in calls]
    found["restored"] = [run(pipe, calls[0])]
    return found


def jobs(size: int) -> dict[str, Callable[[int], dict[str, Any]]]:
    """By pipeline, for a group of `size` ranks: two components, of which further ranks share the last."""
    stride = size - 1
    names = COVERED if stride == 1 else STRIDED
    return {name: partial(_ignoring_rank, name, stride) for name in names}


def _ignoring_rank(name: str, stride: int, rank: int) -> dict[str, Any]:
    return cover(name, 2, stride, warm_up=1)
