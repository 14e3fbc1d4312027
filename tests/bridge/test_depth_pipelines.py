"""Unmodified pipelines in depth: all ranks played in one process, which gives the same numbers.

Also adapters that come and go.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from more_pipelines import MORE_PIPELINES
from tiny_pipelines import PIPELINES, STEPS, run, stable_diffusion
from torch import Tensor, nn
from traced_once import traced_once

import parasample as ps
from parasample.bridge.depth import AsyncHandle

ALL = PIPELINES | MORE_PIPELINES
NOT_THREE = {"Flux", "Flux-true-cfg", "StableDiffusion3", "DiT"}  # two layers only
SPLIT = {"down_blocks": 0, "mid_block": 0, "up_blocks": 1}


def emulated(pipe: Any, call: dict[str, Any], *args: Any, **config: Any) -> Tensor:
    with AsyncHandle(pipe, ps.Async(*args, **config), emulated=True):
        return run(pipe, call)


@pytest.mark.parametrize("name", ALL)
def test_pipelines(name: str) -> None:
    torch.manual_seed(0)
    pipe, call = ALL[name]()
    expected = run(pipe, call)
    with traced_once(id):
        assert torch.equal(emulated(pipe, call, 2, warm_up=STEPS), expected), "all steps as ever"
        for components in (2,) if name in NOT_THREE else (2, 3):
            found = emulated(pipe, call, components)
            assert found.shape == expected.shape and found.isfinite().all()
            assert not torch.equal(found, expected), "or nothing was in parallel"
    assert torch.equal(run(pipe, call), expected), "restore() must be exact"


@pytest.mark.parametrize("name", ["AnimateDiff", "StableDiffusionXL-inpainting"])
def test_strides(name: str) -> None:
    torch.manual_seed(0)
    pipe, call = MORE_PIPELINES[name]()
    expected = run(pipe, call)
    with traced_once(id):
        for extrapolate in ("auto", None):
            found = emulated(pipe, call, 2, stride=2, warm_up=2, extrapolate=extrapolate)
            assert found.isfinite().all() and not torch.equal(found, expected)
            rms = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
            assert rms < 0.5, "parallel, and yet near"


def test_a_batch_is_its_samples() -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion(batch=4)
    noise = torch.randn(4, 4, 8, 8)
    config: dict[str, Any] = {"split": SPLIT, "extrapolate": None}
    together = emulated(pipe, call | {"latents": noise}, 2, **config)
    for sample in range(4):
        rows = slice(sample, sample + 1)
        single = {key: value[rows] if isinstance(value, Tensor) else value for key, value in call.items()}
        alone = emulated(pipe, single | {"latents": noise[rows]}, 2, **config)
        torch.testing.assert_close(together[rows], alone, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- adapters


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it, as LoRA puts it in the layer's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 3 * self.up(self.down(x))


def load_adapter(unet: nn.Module) -> None:
    """In the place of layers of both halves; seeded."""
    torch.manual_seed(1)
    for module in list(unet.modules()):
        for child in ("to_q", "to_v", "time_emb_proj"):
            if isinstance(getattr(module, child, None), nn.Linear):
                setattr(module, child, Adapted(getattr(module, child)))
    assert any(isinstance(module, Adapted) for module in unet.modules())


@pytest.mark.parametrize("when", ["before", "after parallelize", "between calls"])
def test_an_adapter(when: str) -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion()
    other = stable_diffusion()[0]
    other.unet.load_state_dict(pipe.unet.state_dict())
    load_adapter(other.unet)
    config = ps.Async(2, split=SPLIT, extrapolate=None)
    with AsyncHandle(other, config, emulated=True):
        expected = run(other, call)
    adapted = run(other, call)
    if when == "before":
        load_adapter(pipe.unet)
    with AsyncHandle(pipe, config, emulated=True):
        if when == "between calls":
            assert not torch.equal(run(pipe, call), expected)
        if when != "before":
            load_adapter(pipe.unet)
        found = run(pipe, call)
    assert torch.equal(found, expected)
    assert not torch.equal(found, adapted)
    assert torch.equal(run(pipe, call), adapted)


def test_a_block_removed_between_calls() -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion()
    with AsyncHandle(pipe, ps.Async(2, split={"": 1, "down_blocks": 0}, warm_up=STEPS), emulated=True):
        whole = run(pipe, call)
        taken, pipe.unet.mid_block = pipe.unet.mid_block, None
        without = run(pipe, call)
        pipe.unet.mid_block = taken
        assert torch.equal(run(pipe, call), whole) and not torch.equal(without, whole)
    assert all("forward" not in module.__dict__ for module in pipe.unet.modules())
