"""A parallelized pipeline's loop looks as it always did: callbacks, progress, interrupts, variants."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import (
    PIPELINES,
    STEPS,
    run,
    stable_diffusion,
    stable_diffusion_img2img,
    stable_diffusion_xl,
)
from toy import make_scheduler, seeded

import parasample as ps

METHOD = ps.Picard(window=3, tolerance=0)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    return stable_diffusion(2)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Recorder:
    """A callback that remembers what it was given."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.timesteps: list[float] = []
        self.latents: list[torch.Tensor] = []

    def __call__(self, pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        self.steps.append(step)
        self.timesteps.append(float(timestep))
        self.latents.append(kwargs["latents"].clone())
        return kwargs


def run_both(pipe: Any, call: dict[str, Any], make_callback: Any, **changes: Any) -> tuple[Any, Any]:
    expected_callback, found_callback = make_callback(), make_callback()
    expected = run(pipe, call, callback_on_step_end=expected_callback, **changes)
    with ps.parallelize(pipe, METHOD):
        found = run(pipe, call, callback_on_step_end=found_callback, **changes)
    close(found, expected)
    return expected_callback, found_callback


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "dpm++2m", "heun"])
def test_callback_sees_every_step(tiny: Any, name: str) -> None:
    pipe, call = tiny
    pipe.scheduler = make_scheduler(name)
    expected, found = run_both(pipe, call, Recorder)
    assert found.steps == expected.steps == list(range(len(expected.steps)))
    assert found.timesteps == expected.timesteps
    for ours, theirs in zip(found.latents, expected.latents, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * scale)


def test_latents_that_a_callback_keeps_do_not_change_later(tiny: Any) -> None:
    pipe, call = tiny
    pipe.scheduler = make_scheduler("ddim")
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        kept.append((kwargs["latents"], kwargs["latents"].clone()))
        return kwargs

    with ps.parallelize(pipe, METHOD):
        run(pipe, call, callback_on_step_end=keep)
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


def replace_at_once() -> Any:
    return lambda pipe, step, t, kwargs: {"latents": kwargs["latents"] * 0.95} if step in (1, 4) else {}


def replace_and_keep_the_old() -> Any:
    kept = []

    def callback(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        kept.append(kwargs["latents"])
        return {"latents": kwargs["latents"] * 0.95} if step in (1, 4) else {}

    return callback


def edit_in_place() -> Any:
    def callback(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step in (1, 4):
            kwargs["latents"].mul_(0.95)
        return {}

    return callback


def edit_one_sample() -> Any:
    def callback(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            kwargs["latents"][1] += 0.05
        return kwargs

    return callback


def replace_every_step() -> Any:
    return lambda pipe, step, timestep, kwargs: {"latents": kwargs["latents"] * 0.99}


def replace_at_the_end() -> Any:
    return lambda pipe, step, t, kwargs: {"latents": kwargs["latents"] + 1.0} if step == STEPS - 1 else {}


CHANGES = [
    replace_at_once, replace_and_keep_the_old, edit_in_place, edit_one_sample, replace_every_step,
    replace_at_the_end,
]  # fmt: skip


@pytest.mark.parametrize("guidance", [1.0, 5.0], ids=["plain", "guided"])
@pytest.mark.parametrize("name", ["ddpm", "euler", "dpm++2m"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_callback_that_changes_latents(tiny: Any, change: Any, name: str, guidance: float) -> None:
    pipe, call = tiny
    pipe.scheduler = make_scheduler(name)
    run_both(pipe, call, change, guidance_scale=guidance)


def test_predictor_corrector_refuses_changed_latents(tiny: Any) -> None:
    pipe, call = tiny
    pipe.scheduler = make_scheduler("unipc")
    with (
        ps.parallelize(pipe, METHOD),
        pytest.raises(ps.UnsupportedPipelineError, match="goes on from its own last state"),
    ):
        run(pipe, call, callback_on_step_end=replace_at_once())


@pytest.mark.parametrize("step", [0, 2, STEPS - 1])
def test_interrupt(tiny: Any, step: int) -> None:
    pipe, call = tiny
    pipe.scheduler = make_scheduler("ddpm")

    def interrupt_at() -> Any:
        def callback(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if index == step:
                pipe._interrupt = True
            return kwargs

        return callback

    run_both(pipe, call, interrupt_at)
    with ps.parallelize(pipe, METHOD):
        run(pipe, call, callback_on_step_end=interrupt_at())
        after = run(pipe, call)
    close(after, run(pipe, call))


class CountingBar:
    """Stands in for the pipeline's progress bar."""

    def __init__(self, iterable: Any = None, total: int | None = None) -> None:
        self.total = total if total is not None else len(iterable)
        self.iterable, self.count = iterable, 0

    def __enter__(self) -> CountingBar:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Any:
        for item in self.iterable:
            yield item
            self.count += 1

    def update(self, count: int = 1) -> None:
        self.count += count


@pytest.mark.parametrize("name", ["StableDiffusion", "Flux", "DDPM"])
def test_progress_bar(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    pipe, call = PIPELINES[name]()
    bars: list[CountingBar] = []

    def progress_bar(iterable: Any = None, total: int | None = None) -> CountingBar:
        bars.append(CountingBar(iterable, total))
        return bars[-1]

    monkeypatch.setattr(pipe, "progress_bar", progress_bar, raising=False)
    run(pipe, call)
    with ps.parallelize(pipe, ps.Picard(window=3, tolerance=0.1)):
        run(pipe, call)
    assert [(bar.total, bar.count) for bar in bars] == [(STEPS, STEPS)] * 2


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m", "unipc"])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_img2img_strength(strength: float, name: str) -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion_img2img()
    pipe.scheduler = make_scheduler(name)
    call |= {"strength": strength, "num_inference_steps": 10}
    expected = run(pipe, call)
    with ps.parallelize(pipe, METHOD) as handle:
        found = run(pipe, call)
    close(found, expected)
    assert handle.stats.num_steps == round(10 * strength)


def test_denoising_end_stops_early() -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion_xl()
    call |= {"denoising_end": 0.6, "num_inference_steps": 10}
    expected = run(pipe, call)
    with ps.parallelize(pipe, METHOD) as handle:
        found = run(pipe, call)
        assert handle.stats.num_steps == 6
        close(
            run(pipe, call | {"denoising_end": None}),
            run_sequentially(pipe, handle, call | {"denoising_end": None}),
        )
    close(found, expected)


def run_sequentially(pipe: Any, handle: ps.Handle, call: dict[str, Any]) -> torch.Tensor:
    handle.restore()
    return run(pipe, call)


def test_steps_batch_and_size_may_change_between_calls(tiny: Any) -> None:
    pipe, _ = tiny
    pipe.scheduler = make_scheduler("ddpm")
    calls = [
        stable_diffusion(batch)[1]
        | {"num_inference_steps": steps, "height": size, "width": size, "guidance_scale": g}
        for batch, steps, size, g in [(1, 4, 8, 5.0), (3, 7, 8, 5.0), (2, 4, 16, 1.0), (1, 4, 8, 5.0)]
    ]
    expected = [run(pipe, call) for call in calls]
    with ps.parallelize(pipe, METHOD) as handle:
        for call, image in zip(calls, expected, strict=True):
            close(run(pipe, call), image)
            assert handle.stats.num_steps == call["num_inference_steps"]


def test_denoiser_outside_of_the_loop_is_itself(tiny: Any) -> None:
    """Also in the middle of a call, as a callback would use it."""
    pipe, call = tiny
    pipe.scheduler = make_scheduler("ddim")
    arguments = (torch.randn(3, 4, 8, 8, generator=seeded(1)), 500, torch.randn(3, 5, 8, generator=seeded(2)))
    with torch.no_grad():
        expected = pipe.unet(*arguments)[0]
    found = []

    def use(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        found.append(pipe.unet(*arguments)[0])
        return {}

    with ps.parallelize(pipe, METHOD), torch.no_grad():
        found.append(pipe.unet(*arguments)[0])
        run(pipe, call, callback_on_step_end=use)
        found.append(pipe.unet(*arguments)[0])
    assert len(found) == STEPS + 2
    assert all(torch.equal(output, expected) for output in found)


def test_scheduler_still_looks_like_itself(tiny: Any) -> None:
    pipe, _ = tiny
    pipe.scheduler = make_scheduler("dpm++2m")
    with ps.parallelize(pipe, METHOD):
        assert isinstance(pipe.scheduler, diffusers.DPMSolverMultistepScheduler)
        assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"
        pipe.scheduler.set_timesteps(5)
        assert pipe.scheduler.timesteps.tolist() == [999, 799, 599, 400, 200]
        assert pipe.config["scheduler"] == ("diffusers", "DPMSolverMultistepScheduler")
