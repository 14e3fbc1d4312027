"""What a rank of tests/runtime/test_depth_faults.py does: calls that must fail on every rank.

`FAULTS[name](rank)` parallelizes a pipeline and makes a call that cannot work; then, where the pipeline is
still parallelized, one that can; then a sequential one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from tiny_pipelines import _randn, _unet, run, stable_diffusion
from torch import Tensor, nn

import parasample as ps

SPLIT = {"down_blocks": 0, "mid_block": 0, "up_blocks": 1}
PLAIN = ps.Async(2, split=SPLIT, extrapolate=None)

Call = dict[str, Any]
Spoil = Callable[[Any, Call, int], Any]  # a context around the bad call; may change the call


class Broken(Exception):
    pass


def attempt(spoil: Spoil, config: ps.Async, rank: int, pipe: Any = None) -> dict[str, Any]:
    """The error of a spoilt call, and whether calls before and after are what they should be."""
    torch.manual_seed(0)
    fresh, call = stable_diffusion()
    pipe = pipe or fresh
    sequential = run(pipe, call)
    found: dict[str, Any] = {"error": "none", "message": ""}
    try:
        with ps.parallelize(pipe, config):
            good = run(pipe, call) if config == PLAIN else None
            spoilt = dict(call)
            try:
                with spoil(pipe, spoilt, rank):
                    run(pipe, spoilt)
            except Exception as error:
                found = {"error": type(error).__name__, "message": str(error)}
            if good is not None:
                found["usable"] = torch.equal(run(pipe, call), good)
    except Exception as error:  # parallelize itself refused
        found = {"error": type(error).__name__, "message": str(error)}
    return found | {"restored": torch.equal(run(pipe, call), sequential)}


# ---------------------------------------------------------------------- ways to spoil a call


@contextmanager
def nothing(pipe: Any, call: Call, rank: int) -> Iterator[None]:
    yield


def other(name: str, value: Callable[[int], Any]) -> Spoil:
    """Every rank gives the call another value of an argument."""

    @contextmanager
    def spoil(pipe: Any, call: Call, rank: int) -> Iterator[None]:
        call[name] = value(rank)
        yield

    return spoil


other_prompt = other("prompt_embeds", lambda rank: _randn(1, 5, 8, seed=20 + rank))
other_shape = other("height", lambda rank: 8 * (1 + rank))
other_batch = other("num_images_per_prompt", lambda rank: 1 + rank)
other_seed = other("generator", lambda rank: torch.Generator().manual_seed(20 + rank))
other_steps = other("num_inference_steps", lambda rank: 5 + rank)


@contextmanager
def other_noise(pipe: Any, call: Call, rank: int) -> Iterator[None]:
    """The same latents, but other noise in the steps."""
    call |= {"latents": _randn(1, 4, 8, 8), "eta": 1.0, "generator": torch.Generator().manual_seed(rank)}
    yield


@contextmanager
def replaced_denoiser(pipe: Any, call: Call, rank: int) -> Iterator[None]:
    own, pipe.unet = pipe.unet, _unet()
    try:
        yield
    finally:
        pipe.unet = own


@contextmanager
def one_block_more(pipe: Any, call: Call, rank: int) -> Iterator[None]:
    """On one rank only, since the last call."""
    own = pipe.unet.mid_block
    if rank == 1:
        pipe.unet.mid_block = None
    try:
        yield
    finally:
        pipe.unet.mid_block = own


@contextmanager
def failing(pipe: Any, call: Call, rank: int, broken: int, at_call: int) -> Iterator[None]:
    """Rank `broken` fails when it runs this block, which all need, for the n-th time."""
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if rank == broken and calls == at_call:
            raise Broken("the model failed")

    hook = pipe.unet.time_embedding.register_forward_hook(fail)
    try:
        yield
    finally:
        hook.remove()


# ---------------------------------------------------------------------- models


class OneBlock(nn.Module):
    """A denoiser with a single block."""

    def __init__(self) -> None:
        super().__init__()
        self.config = stable_diffusion()[0].unet.config
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.add_embedding = None

    def forward(self, sample: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        return (self.conv(sample),)


class WritesIntoItsInput(OneBlock):
    """A block changes what the code around it goes on with: it cannot be computed elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.second = Overwriting()

    def forward(self, sample: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        hidden = self.conv(sample)
        self.second(hidden)
        return (hidden,)


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> None:
        x.add_(0.1 * self.conv(x.clone()))


def with_model(make: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    pipe, _ = stable_diffusion()
    pipe.unet = make()
    return pipe


def structures_differ(rank: int) -> dict[str, Any]:
    """One rank's denoiser has a layer more, from the start."""
    torch.manual_seed(0)
    pipe, _ = stable_diffusion()
    pipe.unet = _unet(layers_per_block=1 + rank)
    return attempt(nothing, ps.Async(2), rank, pipe)


# By name: what is done, the error expected on rank 0 and on rank 1, and a part of its message.
FAULTS: dict[str, tuple[Callable[[int], dict[str, Any]], tuple[str, str], str]] = {
    "too-many-components": (
        lambda rank: attempt(nothing, ps.Async(2), rank, with_model(OneBlock)),
        ("ConfigError", "ConfigError"), "components=2 is outside",
    ),
    "unsplittable": (
        lambda rank: attempt(nothing, ps.Async(2), rank, with_model(WritesIntoItsInput)),
        ("TransportError", "UnsupportedPipelineError"),
        "",
    ),
    "wrong-ranks": (
        lambda rank: attempt(nothing, ps.Async(4, stride=2), rank),
        ("ConfigError", "ConfigError"), "takes 5 ranks, found 2",
    ),
    "other-components": (
        lambda rank: attempt(nothing, ps.Async(2 + rank), rank),
        ("ConfigError", "ConfigError"), "the method differs between",
    ),
    "other-extrapolation": (
        lambda rank: attempt(nothing, ps.Async(2, extrapolate=("auto", None)[rank]), rank),
        ("ConfigError", "ConfigError"), "the method differs between",
    ),
    "other-structure": (structures_differ, ("ConfigError", "ConfigError"), "structure differs between"),
    "other-prompt": (
        partial(attempt, other_prompt, PLAIN), ("ConfigError", "ConfigError"), "conditioning differs between",
    ),
    "other-shape": (
        partial(attempt, other_shape, PLAIN), ("ConfigError", "ConfigError"),
        "shape of the latents differs between",
    ),
    "other-batch": (
        partial(attempt, other_batch, PLAIN), ("ConfigError", "ConfigError"),
        "shape of the latents differs between",
    ),
    "other-seed": (
        partial(attempt, other_seed, PLAIN), ("ConfigError", "ConfigError"), "latents differs between",
    ),
    "other-steps": (
        partial(attempt, other_steps, PLAIN), ("ConfigError", "ConfigError"), "schedule differs between",
    ),
    "other-noise": (
        lambda rank: attempt(other_noise, ps.Async(2, split=SPLIT), rank),
        ("ConfigError", "ConfigError"), "the generator differs between",
    ),
    "replaced-denoiser": (
        partial(attempt, replaced_denoiser, PLAIN), ("ConfigError", "ConfigError"),
        "unet was replaced by a UNet2DConditionModel after parallelize",
    ),
    "changed-on-one-rank": (
        partial(attempt, one_block_more, PLAIN), ("ConfigError", "ConfigError"),
        "modules were changed since the last call differs between",
    ),
    "broken-first-step": (
        partial(attempt, partial(failing, broken=1, at_call=1), PLAIN), ("TransportError", "Broken"),
        "failed",
    ),
    "broken-later": (
        partial(attempt, partial(failing, broken=0, at_call=3), PLAIN), ("Broken", "TransportError"),
        "",
    ),
    "broken-at-the-end": (
        partial(attempt, partial(failing, broken=1, at_call=6), PLAIN), ("TransportError", "Broken"), "",
    ),
    "broken-while-traced": (
        lambda rank: attempt(partial(failing, broken=0, at_call=2), ps.Async(2), rank),
        ("Broken", "TransportError"),
        "failed",
    ),
}  # fmt: skip


def jobs() -> dict[str, Callable[[int], dict[str, Any]]]:
    """By name, for a group of two ranks."""
    return {name: fault for name, (fault, _, _) in FAULTS.items()}
