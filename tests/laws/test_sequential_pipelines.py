"""Law 1 on a diffusers pipeline: at tolerance 0 every scheduler gives the sequential latents, to rounding."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_pipelines import STEPS, run, stable_diffusion
from toy import SCHEDULERS, make_scheduler, seeded, step_arguments

import parasample as ps
from parasample.config import UPDATES

GENERATORS: dict[str, Callable[[int], Any]] = {
    "one": lambda batch: seeded(3),
    "list": lambda batch: [seeded(3 + i) for i in range(batch)],
    "global": lambda batch: None,
}


@pytest.fixture(scope="module")
def tiny() -> Any:
    torch.manual_seed(0)
    pipe, _ = stable_diffusion()
    return pipe


def compare(
    pipe: Any, name: str, config: ps.Picard, batch: int = 1, generators: str = "one", **call: Any
) -> ps.Stats:
    """Run sequentially and in parallel with equal generators; returns the parallel run's stats."""
    _, arguments = stable_diffusion(batch)
    pipe.scheduler = make_scheduler(name)
    accepted = inspect.signature(pipe.scheduler.step).parameters
    arguments |= {k: v for k, v in step_arguments(name).items() if k in accepted} | call

    def once() -> torch.Tensor:
        torch.manual_seed(17)
        return run(pipe, arguments, generator=GENERATORS[generators](batch))

    expected = once()
    with ps.parallelize(pipe, config) as handle:
        found = once()
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5 * scale)
    assert handle.stats.rounds <= handle.stats.num_steps
    assert handle.stats.batch == batch
    return handle.stats


@pytest.mark.parametrize("window", [1, 3, "full"])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if not name.startswith("flow")])
def test_tolerance_zero_equals_sequential(tiny: Any, name: str, window: Any) -> None:
    compare(tiny, name, ps.Picard(window=window, tolerance=0))


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++2m"])
@pytest.mark.parametrize("update", UPDATES)
def test_every_update(tiny: Any, update: Any, name: str) -> None:
    compare(tiny, name, ps.Picard(window=4, tolerance=0, update=update), batch=2)


@pytest.mark.parametrize("generators", GENERATORS)
@pytest.mark.parametrize("name", ["ddim", "ddim-eta1", "ddpm", "euler-ancestral", "sde-dpm++"])
def test_batch_and_generators(tiny: Any, name: str, generators: str) -> None:
    compare(tiny, name, ps.Picard(window=3, tolerance=0), batch=3, generators=generators)


def test_images_per_prompt(tiny: Any) -> None:
    stats = compare(tiny, "ddpm", ps.Picard(window=3, tolerance=0), batch=2, num_images_per_prompt=1)
    assert stats.batch == 2
    tiny.scheduler = make_scheduler("ddpm")
    _, call = stable_diffusion(2)
    expected = run(tiny, call, num_images_per_prompt=2)
    with ps.parallelize(tiny, ps.Picard(window=3, tolerance=0)) as handle:
        found = run(tiny, call, num_images_per_prompt=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert handle.stats.batch == 4


@pytest.mark.parametrize("call", [{"timesteps": [900, 700, 420, 100, 30]}, {"guidance_scale": 1.0}], ids=str)
def test_call_variants(tiny: Any, call: dict[str, Any]) -> None:
    compare(tiny, "ddpm", ps.Picard(window=3, tolerance=0), batch=2, **call)


def test_custom_sigmas(tiny: Any) -> None:
    stats = compare(tiny, "euler", ps.Picard(window=3, tolerance=0), sigmas=[12.0, 6.0, 2.0, 0.5, 0.0])
    assert stats.num_steps == 4


def test_inference_mode(tiny: Any) -> None:
    with torch.inference_mode():
        compare(tiny, "ddpm", ps.Picard(window=3, tolerance=0), batch=2)


def test_half_precision_stays_close(tiny: Any) -> None:
    """In bfloat16 the trajectory is kept in float32, so the result is as close to it as sequential is."""
    _, call = stable_diffusion(2)
    tiny.scheduler = make_scheduler("ddim")
    precise = run(tiny, call)
    tiny.to(torch.bfloat16)
    try:
        half_call = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
        expected = run(tiny, half_call).float()
        with ps.parallelize(tiny, ps.Picard(window=3, tolerance=0)):
            found = run(tiny, half_call)
    finally:
        tiny.to(torch.float32)
    assert found.dtype == torch.bfloat16
    error, allowed = (found.float() - precise).norm(), (expected - precise).norm()
    assert error <= 1.5 * allowed


def test_model_is_called_no_more_than_rounds(tiny: Any) -> None:
    """Rounds are calls of the denoiser; an iteration whose state is final already calls nothing."""
    _, call = stable_diffusion(1)
    tiny.scheduler = make_scheduler("ddim")
    calls: list[int] = []
    hook = tiny.unet.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(args[0])), with_kwargs=True
    )
    own_forward = type(tiny.unet).forward
    evaluated: list[int] = []

    @functools.wraps(own_forward)
    def counting(self: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        evaluated.append(len(sample))
        return own_forward(self, sample, *args, **kwargs)

    type(tiny.unet).forward = counting
    try:
        with ps.parallelize(tiny, ps.Picard(window=8, tolerance=0.05)) as handle:
            run(tiny, call, num_inference_steps=4 * STEPS)
    finally:
        type(tiny.unet).forward = own_forward
        hook.remove()
    assert len(evaluated) == handle.stats.rounds < 4 * STEPS == len(calls)
    assert sum(evaluated) == 2 * handle.stats.evaluations, "two guidance rows for each state"
