"""Depth equals AsyncDiff (arXiv 2406.06911), transcribed here from the paper's description.

A U-Net is cut into N parts: all but the last are given the latents at hand, and each what the others made in
the batch before. With stride S steps come in batches of S: every part runs once a batch, told the timestep
of the batch's last step, but the last part, which runs for each step of the batch, told its own timestep.
`time_shift` tells every part the timestep of the step before. Nothing here is taken from parasample: the
parts are functions over the U-Net's modules, in float64, and the loop over the steps is written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_pipelines import _randn, run, stable_diffusion
from torch import Tensor
from toy import make_scheduler
from traced_once import traced_once

import parasample as ps
from parasample.bridge.depth import AsyncHandle

STEPS = 7  # the last batch of 2 or 3 is cut short
GUIDANCE = 5.0
SPLITS = {
    2: {"conv_in": 0, "down_blocks": 0, "mid_block": 0, "up_blocks": 1, "conv_norm_out": 1, "conv_out": 1},
    3: {"conv_in": 0, "down_blocks": 0, "mid_block": 1, "up_blocks": 2, "conv_norm_out": 2, "conv_out": 2},
}  # fmt: skip


class Parts:
    """The U-Net in three: each part takes a timestep and what the parts before it made."""

    def __init__(self, unet: Any, prompt: Tensor) -> None:
        self.unet, self.prompt = unet, prompt

    def time(self, t: Tensor) -> Tensor:
        rows = t.expand(len(self.prompt))
        return self.unet.time_embedding(self.unet.time_proj(rows).to(self.prompt.dtype))

    def down(self, latents: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """The skip connections; the last is where the middle goes on."""
        hidden = self.unet.conv_in(latents)
        skips = [hidden]
        for block in self.unet.down_blocks:
            extra = {"encoder_hidden_states": self.prompt} if hasattr(block, "attentions") else {}
            hidden, made = block(hidden, self.time(t), **extra)
            skips += made
        return tuple(skips)

    def middle(self, skips: tuple[Tensor, ...], t: Tensor) -> Tensor:
        return self.unet.mid_block(skips[-1], self.time(t), encoder_hidden_states=self.prompt)

    def up(self, hidden: Tensor, skips: tuple[Tensor, ...], t: Tensor) -> Tensor:
        """The noise prediction."""
        for block in self.unet.up_blocks:
            taken, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            extra = {"encoder_hidden_states": self.prompt} if hasattr(block, "attentions") else {}
            hidden = block(hidden, taken, self.time(t), **extra)
        return self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(hidden)))


@torch.no_grad()
def emulate(pipe: Any, call: dict[str, Any], config: ps.Async) -> Tensor:
    """The latents that N + S - 1 devices would arrive at, one part after the other."""
    parts = Parts(pipe.unet, torch.cat([call["negative_prompt_embeds"], call["prompt_embeds"]]))
    scheduler = pipe.scheduler
    scheduler.set_timesteps(STEPS)
    times, x = scheduler.timesteps, call["latents"] * scheduler.init_noise_sigma
    skips: tuple[Tensor, ...] = ()
    hidden = x

    def advance(step: int, output: Tensor, x: Tensor) -> Tensor:
        plain, guided = output.chunk(2)
        return scheduler.step(plain + GUIDANCE * (guided - plain), times[step], x).prev_sample

    def given(step: int, x: Tensor) -> Tensor:
        return scheduler.scale_model_input(torch.cat([x, x]), times[step])

    for step in range(config.warm_up):
        skips = parts.down(given(step, x), times[step])
        hidden = parts.middle(skips, times[step])
        x = advance(step, parts.up(hidden, skips, times[step]), x)
    shift = 1 if config.time_shift else 0
    for first in range(config.warm_up, STEPS, config.stride):
        ahead = times[min(first + config.stride, STEPS) - 1 - shift]
        batch = range(first, min(first + config.stride, STEPS))
        new_skips = parts.down(given(first, x), ahead)
        # With three parts the middle is a device of its own and reads what came down a batch ago.
        new_hidden = parts.middle(skips if config.components == 3 else new_skips, ahead)
        outputs = [parts.up(hidden, skips, times[step - shift]) for step in batch]
        skips, hidden = new_skips, new_hidden
        for step, output in zip(batch, outputs, strict=True):
            x = advance(step, output, x)
    return x


def tiny(scheduler: str = "ddim") -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    pipe, call = stable_diffusion(scheduler=make_scheduler(scheduler), guidance_scale=GUIDANCE)
    pipe.unet.double()
    call = {name: value.double() if isinstance(value, Tensor) else value for name, value in call.items()}
    return pipe, call | {"latents": _randn(1, 4, 8, 8, seed=3).double(), "num_inference_steps": STEPS}


@pytest.fixture(autouse=True, scope="module")
def one_denoiser() -> Iterator[None]:
    with traced_once(type):
        yield


@pytest.mark.parametrize("time_shift", [False, True], ids=["", "shift"])
@pytest.mark.parametrize("warm_up", [1, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("components", [2, 3])
def test_equals_the_transcription(components: int, stride: int, warm_up: int, time_shift: bool) -> None:
    pipe, call = tiny()
    config = ps.Async(components, stride, warm_up, time_shift, split=SPLITS[components], extrapolate=None)
    expected, sequential = emulate(pipe, call, config), run(pipe, call)
    with AsyncHandle(pipe, config, emulated=True):
        found = run(pipe, call)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (found - sequential).abs().max() > 1e-4, "or nothing was stale, and nothing shown"


@pytest.mark.parametrize("scheduler", ["dpm++2m", "euler"])
def test_schedulers_that_remember_or_scale(scheduler: str) -> None:
    pipe, call = tiny(scheduler)
    config = ps.Async(3, 2, split=SPLITS[3], extrapolate=None)
    expected = emulate(pipe, call, config)
    with AsyncHandle(pipe, config, emulated=True):
        found = run(pipe, call)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_warm_up_of_all_steps_is_sequential_in_the_transcription_too() -> None:
    pipe, call = tiny()
    config = ps.Async(2, warm_up=STEPS, split=SPLITS[2], extrapolate=None)
    torch.testing.assert_close(emulate(pipe, call, config), run(pipe, call), rtol=1e-9, atol=1e-9)
