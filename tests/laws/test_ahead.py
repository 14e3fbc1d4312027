"""Working ahead loses nothing but what the prediction of the latents misses.

With predictions that come true, here those of an oracle that knows the sequential run, depth is sequential to
rounding: every stage works on the latents and the timestep of its own step and reads nothing stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from depth_script import NESTED, SPLIT
from tiny_pipelines import _randn, run, stable_diffusion
from torch import Tensor
from toy import make_scheduler
from traced_once import traced_once

import parasample as ps
from parasample.bridge.depth import AsyncHandle
from parasample.runtime.prediction import LatentPredictor

STEPS, WARM_UP = 9, 5  # the longest way has four hops
SPLITS = [pytest.param(SPLIT[2], id="row2"), pytest.param(SPLIT[3], id="row3"),
          pytest.param(NESTED[2], id="nested2"), pytest.param(NESTED[3], id="nested3")]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_denoiser() -> Iterator[None]:
    with traced_once(type):
        yield


def trajectory(pipe: Any, call: dict[str, Any]) -> tuple[Tensor, dict[int, Tensor]]:
    """The sequential sample, and the latents before each step."""
    states: dict[int, Tensor] = {}

    def note(_: Any, step: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        states[step + 1] = tensors["latents"].clone()
        return tensors

    return run(pipe, call, callback_on_step_end=note), states


@pytest.mark.parametrize("scheduler", ["ddpm", "dpm++2m"])
@pytest.mark.parametrize("split", SPLITS)
def test_with_perfect_predictions_depth_is_sequential(
    split: dict[str, int], scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion(scheduler=make_scheduler(scheduler))
    pipe.unet.double()
    call = {name: value.double() if isinstance(value, Tensor) else value for name, value in call.items()}
    call |= {"latents": _randn(1, 4, 8, 8, seed=3).double(), "num_inference_steps": STEPS}
    sequential, states = trajectory(pipe, call)
    asked = set()

    def oracle(self: LatentPredictor, step: int) -> Tensor:
        asked.add(step - self.step)
        return states[step] if step > self.step else self.state

    monkeypatch.setattr(LatentPredictor, "predict", oracle)
    components = 1 + max(split.values())
    config = ps.Async(components, warm_up=WARM_UP, split=split, extrapolate="latents")
    with AsyncHandle(pipe, config, emulated=True) as handle:
        found = run(pipe, call)
        assert handle.schedules[0].horizon == max(asked) >= components - 1
    torch.testing.assert_close(found, sequential, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("split", SPLITS[:3])
def test_with_the_real_predictions_it_is_close_and_not_equal(split: dict[str, int]) -> None:
    """Or the oracle above was never needed."""
    torch.manual_seed(0)
    pipe, call = stable_diffusion(scheduler=make_scheduler("ddim"))
    call |= {"num_inference_steps": STEPS}
    sequential = run(pipe, call)
    config = ps.Async(1 + max(split.values()), warm_up=WARM_UP, split=split, extrapolate="latents")
    with AsyncHandle(pipe, config, emulated=True):
        error = (run(pipe, call) - sequential).abs().max()
    assert 1e-6 < error < 0.1
