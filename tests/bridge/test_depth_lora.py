"""LoRA in depth, loaded by diffusers and peft before or after `parallelize`, fused and taken out again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny_pipelines import run, stable_diffusion

import parasample as ps
from parasample.bridge.depth import AsyncHandle

SPLIT = {"down_blocks": 0, "mid_block": 0, "up_blocks": 1}
ALL_STEPS = ps.Async(2, split=SPLIT, warm_up=100)
SHARED = ps.Async(2, split=SPLIT, extrapolate=None)


def load(pipe: Any) -> None:
    torch.manual_seed(1)
    targets = ["to_q", "to_v", "time_emb_proj"]
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


def sequential(steps: list[str]) -> torch.Tensor:
    """A pipeline with the same weights, to which the same was done."""
    pipe, call = made()
    for step in steps:
        DO[step](pipe)
    return run(pipe, call)


def made() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    return stable_diffusion()


DO: dict[str, Any] = {
    "load": load,
    "fuse": lambda pipe: pipe.unet.fuse_lora(),
    "unfuse": lambda pipe: pipe.unet.unfuse_lora(),
    "unload": lambda pipe: pipe.unet.unload_lora(),
}


@pytest.mark.parametrize("config", [ALL_STEPS, SHARED], ids=["all-steps", "shared"])
def test_loaded_between_calls(config: ps.Async) -> None:
    """After `parallelize`: each state of the adapter gives what it gives when it was there before."""
    pipe, call = made()
    done: list[str] = []
    with AsyncHandle(pipe, config, emulated=True):
        plain = run(pipe, call)
        for step in ("load", "fuse", "unfuse", "unload"):
            DO[step](pipe)
            done.append(step)
            found = run(pipe, call)
            if config is ALL_STEPS:
                torch.testing.assert_close(found, sequential(done), rtol=0, atol=0)
            changed = (found - plain).abs().max() > 1e-2
            assert changed == (step != "unload"), "the adapter shows exactly while it is loaded"


def test_loaded_before() -> None:
    pipe, call = made()
    load(pipe)
    expected = run(pipe, call)
    with AsyncHandle(pipe, ALL_STEPS, emulated=True):
        assert torch.equal(run(pipe, call), expected)
    with AsyncHandle(pipe, SHARED, emulated=True):
        shared = run(pipe, call)
    other, _ = made()
    with AsyncHandle(other, SHARED, emulated=True):
        run(other, call)
        load(other)
        assert torch.equal(run(other, call), shared), "when it is loaded makes no difference"
