"""Law 7 in depth: what cannot work is one clear sentence, and the pipeline is as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import run, stable_diffusion

import parasample as ps
from parasample.bridge.depth import AsyncHandle

BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"components": 0}, "components=0 is below 1; pass at least 1"),
    ({"components": 2.5}, "components=2.5 is not a whole number"),
    ({"components": True}, "components=True is not a whole number"),
    ({"components": 2, "stride": 0}, "stride=0 is below 1"),
    ({"components": 2, "warm_up": 0}, "warm_up=0 is below 1"),
    ({"components": 2, "extrapolate": "cubic"}, "'cubic' is unknown; choose one of auto, latents, linear"),
    ({"components": 2, "time_shift": True, "extrapolate": "latents"}, "time_shift=True contradicts"),
    ({"components": 2, "split": "even"}, "neither"),
    ({"components": 2, "split": {}}, "neither"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CONFIGS, ids=lambda value: str(value)[:40])
def test_a_config_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ps.ConfigError, match=message):
        ps.Async(**arguments)


def test_numbers_of_numpy_are_numbers() -> None:
    assert ps.Async(np.int64(2), stride=np.int64(2)) == ps.Async(2, stride=2)


def make() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    return stable_diffusion()


BAD_CALLS: list[tuple[str, ps.Async, type[Exception], str]] = [
    ("unknown-module", ps.Async(2, split={"down_blocks": 0, "nowhere": 1}), ps.ConfigError,
     "matches no block"),
    ("gap", ps.Async(2, split={"down_blocks": 0, "up_blocks": 2}), ps.ConfigError, "without gaps"),
    ("too-few", ps.Async(3, split={"down_blocks": 0, "mid_block": 0, "up_blocks": 1}), ps.ConfigError,
     "split names 2 components, expected components=3"),
    ("too-many", ps.Async(500), ps.ConfigError, "components=500 is outside"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "error", "message"), [case[1:] for case in BAD_CALLS], ids=[case[0] for case in BAD_CALLS]
)
def test_a_call_that_cannot_work_leaves_the_pipeline_as_it_was(
    config: ps.Async, error: type[Exception], message: str
) -> None:
    pipe, call = make()
    expected = run(pipe, call)
    with pytest.raises(error, match=message), AsyncHandle(pipe, config, emulated=True):
        run(pipe, call)
    assert torch.equal(run(pipe, call), expected)


def test_one_process_is_told_of_torchrun() -> None:
    with pytest.raises(ps.ConfigError, match="takes 2 ranks, found 1; run `torchrun --nproc-per-node 2`"):
        ps.parallelize(make()[0], ps.Async(2))


def test_both_methods_together_are_refused() -> None:
    with pytest.raises(ps.ConfigError, match="found Picard and Async"):
        ps.parallelize(make()[0], ps.Picard(), ps.Async(2))


def test_twice_is_refused() -> None:
    pipe, _ = make()
    already = pytest.raises(ps.ConfigError, match="parallelized already")
    with AsyncHandle(pipe, ps.Async(2), emulated=True), already:
        ps.parallelize(pipe, ps.Picard())


def broken(pipe: Any, *_: Any) -> None:
    raise ZeroDivisionError("the model failed")


def without_guidance(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == 2:
        pipe._guidance_scale = 1.0
        tensors["prompt_embeds"] = tensors["prompt_embeds"][-1:]
    return tensors


@pytest.mark.parametrize(
    ("callback", "error", "message"),
    [(broken, ZeroDivisionError, "the model failed"),
     (without_guidance, ps.UnsupportedPipelineError, "guidance that is switched on or off")],
)  # fmt: skip
def test_a_call_that_ends_on_the_way_leaves_the_pipeline_as_it_was(
    callback: Callable[..., Any], error: type[Exception], message: str
) -> None:
    pipe, call = make()
    expected = run(pipe, call)
    with AsyncHandle(pipe, ps.Async(2), emulated=True):
        with pytest.raises(error, match=message):
            run(pipe, call, callback_on_step_end=callback,
                callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])  # fmt: skip
        again = run(pipe, call)  # the next call starts clean
    assert again.isfinite().all()
    assert torch.equal(run(pipe, call), expected)


def test_a_scheduler_replaced_afterwards_is_refused() -> None:
    pipe, call = make()
    with AsyncHandle(pipe, ps.Async(2), emulated=True):
        object.__setattr__(pipe, "scheduler", make()[0].scheduler)
        with pytest.raises(ps.ConfigError, match="scheduler was replaced"):
            run(pipe, call)
