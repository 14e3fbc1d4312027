"""Law 4: `restore()` gives the pipeline back bit for bit, whatever happened in between."""

from __future__ import annotations

import copy
import gc
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import PIPELINES, run, stable_diffusion
from toy import make_scheduler

import parasample as ps
from parasample.runtime.picard import PicardSolver

METHOD = ps.Picard(window=3, tolerance=0)


class Interrupted(Exception):
    pass


def same(first: Any, second: Any) -> bool:
    """Equality by value, through containers, tensors and arrays."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


class Before:
    """What a pipeline is made of, remembered to be compared with."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.attributes = dict(pipe.__dict__)
        self.config = copy.deepcopy(dict(pipe.config))
        self.scheduler_state = copy.deepcopy(pipe.scheduler.__dict__)
        self.weights = {
            name: tensor.clone()
            for module in self.modules().values()
            for name, tensor in module.state_dict().items()
        }

    def modules(self) -> dict[str, torch.nn.Module]:
        return {k: v for k, v in self.pipe.components.items() if isinstance(v, torch.nn.Module)}

    def assert_restored(self) -> None:
        now = self.pipe.__dict__
        assert now.keys() >= self.attributes.keys()  # a call adds some of its own
        for name in ("scheduler", *self.modules()):
            assert now[name] is self.attributes[name], name
        assert same(self.pipe.scheduler.__dict__, self.scheduler_state)
        assert dict(self.pipe.config) == self.config
        for module in self.modules().values():
            assert "forward" not in module.__dict__
            for name, tensor in module.state_dict().items():
                assert torch.equal(tensor, self.weights[name])


@pytest.mark.parametrize(
    "name", ["StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "DiT", "DDPM"]
)
def test_after_a_call(name: str) -> None:
    torch.manual_seed(0)
    pipe, call = PIPELINES[name]()
    expected = run(pipe, call)
    before = Before(pipe)
    handle = ps.parallelize(pipe, METHOD)
    run(pipe, call)
    handle.restore()
    before.assert_restored()
    assert torch.equal(run(pipe, call), expected)


@pytest.fixture
def tiny() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    return stable_diffusion(2, scheduler=make_scheduler("dpm++2m"))


def fail_in_model(pipe: Any, call: dict[str, Any]) -> None:
    def count(module: Any, args: Any, output: Any) -> None:
        calls.append(None)
        if len(calls) == 3:
            raise Interrupted

    calls: list[None] = []
    hook = pipe.unet.conv_in.register_forward_hook(count)
    try:
        with pytest.raises(Interrupted):
            run(pipe, call)
    finally:
        hook.remove()


def fail_in_callback(pipe: Any, call: dict[str, Any]) -> None:
    def stop(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise Interrupted
        return kwargs

    with pytest.raises(Interrupted):
        run(pipe, call, callback_on_step_end=stop)


FAILURES = {"model": fail_in_model, "callback": fail_in_callback}


@pytest.mark.parametrize("where", FAILURES)
def test_after_an_exception(tiny: tuple[Any, dict[str, Any]], where: str) -> None:
    pipe, call = tiny
    expected = run(pipe, call)
    before = Before(pipe)
    with ps.parallelize(pipe, METHOD):
        FAILURES[where](pipe, call)
    before.assert_restored()
    assert torch.equal(run(pipe, call), expected)


@pytest.mark.parametrize("where", FAILURES)
def test_next_call_after_an_exception_starts_clean(tiny: tuple[Any, dict[str, Any]], where: str) -> None:
    pipe, call = tiny
    with ps.parallelize(pipe, METHOD) as handle:
        expected = run(pipe, call)
        rounds = handle.stats.rounds
        FAILURES[where](pipe, call)
        assert torch.equal(run(pipe, call), expected)
        assert handle.stats.rounds == rounds


@pytest.mark.parametrize("where", FAILURES)
def test_denoiser_is_itself_after_an_exception(tiny: tuple[Any, dict[str, Any]], where: str) -> None:
    pipe, call = tiny
    arguments = (torch.randn(2, 4, 8, 8), 500, torch.randn(2, 5, 8))
    with torch.no_grad():
        expected = pipe.unet(*arguments)[0]
        with ps.parallelize(pipe, METHOD):
            FAILURES[where](pipe, call)
            assert torch.equal(pipe.unet(*arguments)[0], expected)


def test_exception_inside_with_restores(tiny: tuple[Any, dict[str, Any]]) -> None:
    pipe, call = tiny
    before = Before(pipe)
    with pytest.raises(Interrupted), ps.parallelize(pipe, METHOD):
        run(pipe, call)
        raise Interrupted
    before.assert_restored()


def test_restore_twice_does_nothing(tiny: tuple[Any, dict[str, Any]]) -> None:
    pipe, call = tiny
    before = Before(pipe)
    handle = ps.parallelize(pipe, METHOD)
    run(pipe, call)
    rounds = handle.stats.rounds
    handle.restore()
    handle.restore()
    before.assert_restored()
    assert handle.stats.rounds == rounds, "stats of the last call outlive restore()"


def test_restore_leaves_a_newer_scheduler_and_other_handles_alone(tiny: tuple[Any, dict[str, Any]]) -> None:
    pipe, _ = tiny
    first = ps.parallelize(pipe, METHOD)
    first.restore()
    second = ps.parallelize(pipe, METHOD)
    wrapped = pipe.scheduler
    first.restore()
    assert pipe.scheduler is wrapped and "forward" in pipe.unet.__dict__
    second.restore()
    newer = make_scheduler("ddim")
    third = ps.parallelize(pipe, METHOD)
    pipe.scheduler = newer
    third.restore()
    assert pipe.scheduler is newer and "forward" not in pipe.unet.__dict__


def test_a_forward_that_was_patched_before_is_kept(tiny: tuple[Any, dict[str, Any]]) -> None:
    """Other tools (offloading, quantisation) put a forward of their own on the instance."""
    pipe, call = tiny
    own, calls = pipe.unet.forward, []

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return own(*args, **kwargs)

    pipe.unet.forward = patched
    expected = run(pipe, call)
    calls.clear()
    with ps.parallelize(pipe, METHOD) as handle:
        found = run(pipe, call)
    assert pipe.unet.forward is patched
    assert len(calls) == handle.stats.rounds, "the patched forward evaluates the rounds"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_finished_call_holds_no_trajectory() -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion()
    with ps.parallelize(pipe, ps.Picard(window=3)) as handle:
        run(pipe, call)
        held = [found for found in gc.get_objects() if isinstance(found, PicardSolver)]
        assert handle.stats.rounds > 0
        assert not held
