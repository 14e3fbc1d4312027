"""Law 1 to the last bit: `Picard(tolerance=0, exact=True)` equals sequential sampling at one batch size.

A model's output depends, in its last bits, on how many rows are computed together. So the sequential run
that it is compared with repeats the rows of every model call as often as the window is long, and keeps the
first block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_pipelines import STEPS, run, stable_diffusion
from toy import make_scheduler, mixture_epsilon, seeded, sequential, start

import parasample as ps

SCHEDULERS = ["ddim", "ddpm", "euler", "euler-ancestral", "dpm++2m", "heun"]


@pytest.fixture(scope="module")
def tiny() -> Any:
    torch.manual_seed(0)
    pipe, _ = stable_diffusion()
    return pipe


@contextmanager
def padded_calls(module: torch.nn.Module, times: int) -> Iterator[None]:
    """The module computes every call's rows `times` times in one batch, and answers with the first block."""
    forward = module.forward

    @functools.wraps(forward)
    def padded(
        sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **kwargs: Any
    ) -> Any:
        many = [x.repeat(times, *(1,) * (x.ndim - 1)) for x in (sample, encoder_hidden_states)]
        return (forward(many[0], timestep, many[1], **kwargs)[0][: len(sample)],)

    module.forward = padded  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


def window_size(window: int | str, name: str) -> int:
    steps = 2 * STEPS - 1 if name == "heun" else STEPS
    return steps if window == "full" else int(window)


@pytest.mark.parametrize(("batch", "guidance"), [(1, 5.0), (2, 1.0)], ids=["guided", "batch2"])
@pytest.mark.parametrize("window", [1, 3, "full"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_pipeline_is_bit_equal(tiny: Any, name: str, window: Any, batch: int, guidance: float) -> None:
    _, call = stable_diffusion(batch, guidance_scale=guidance)
    tiny.scheduler = make_scheduler(name)
    with padded_calls(tiny.unet, window_size(window, name)):
        expected = run(tiny, call)
    with ps.parallelize(tiny, ps.Picard(window=window, tolerance=0, exact=True)) as handle:
        found = run(tiny, call)
    assert torch.equal(found, expected)
    assert handle.stats.rounds <= handle.stats.num_steps


@pytest.mark.parametrize(("batch", "guidance"), [(1, 5.0), (2, 5.0), (2, 1.0)])
def test_outputs_may_depend_on_the_place_in_the_batch(tiny: Any, batch: int, guidance: float) -> None:
    """As they do on CPUs with several threads: which rows share a tile changes the last bits."""
    _, call = stable_diffusion(batch, guidance_scale=guidance)
    tiny.scheduler = make_scheduler("ddim")
    forward = tiny.unet.forward

    @functools.wraps(forward)
    def uneven(*args: Any, **kwargs: Any) -> Any:
        (output,) = forward(*args, **kwargs)[:1]
        place = torch.arange(len(output)).view(-1, *(1,) * (output.ndim - 1))
        return (output * (1 + 1e-6 * place),)

    tiny.unet.forward = uneven
    try:
        with padded_calls(tiny.unet, 3):
            expected = run(tiny, call)
        tiny.unet.forward = uneven
        with ps.parallelize(tiny, ps.Picard(window=3, tolerance=0, exact=True)):
            found = run(tiny, call)
    finally:
        del tiny.unet.forward
    assert torch.equal(found, expected)


@pytest.mark.parametrize("window", [1, 4, "full"])
@pytest.mark.parametrize("name", ["ddim", "ddim-eta1", "ddpm", "euler", "dpm++2m", "sde-dpm++", "unipc"])
def test_sample_is_bit_equal(name: str, window: Any) -> None:
    """A matrix product, whose last bits do depend on the batch size, and equal generators after it."""
    weights = torch.randn(32, 32, generator=seeded(4)) / 6
    steps, batch, x_T = 7, 2, start(name, 2, 32)
    extra = {"eta": 1.0} if name == "ddim-eta1" else {}

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return mixture_epsilon(x, t) + torch.tanh(x @ weights)

    def padded(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times = steps if window == "full" else window
        return model(x.repeat(times, 1), t.repeat(times))[:batch]

    first, second = seeded(5), seeded(5)
    expected = sequential(padded, make_scheduler(name), x_T, steps, first, **extra)
    config = ps.Picard(window=window, tolerance=0, exact=True)
    found = ps.sample(model, make_scheduler(name), x_T, config, steps, generator=second, step_kwargs=extra)
    assert torch.equal(found.sample, expected)
    assert torch.equal(first.get_state(), second.get_state())


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler-ancestral", "dpm++2m"])
def test_replaced_latents_stay_bit_equal(tiny: Any, name: str) -> None:
    """A callback that changes the latents sends the scheduler's own history and noise back to that step."""
    _, call = stable_diffusion(2)
    tiny.scheduler = make_scheduler(name)

    def replace(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] * 0.9} if step in (1, 3) else {}

    with padded_calls(tiny.unet, 3):
        expected = run(tiny, call, callback_on_step_end=replace)
    with ps.parallelize(tiny, ps.Picard(window=3, tolerance=0, exact=True)):
        found = run(tiny, call, callback_on_step_end=replace)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("window", [1, 3])
def test_every_call_has_one_batch_size(window: int) -> None:
    sizes: set[int] = set()

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.add(len(x))
        return mixture_epsilon(x, t)

    ps.sample(model, make_scheduler("ddim"), start("ddim", 2, 8), ps.Picard(window, 0, exact=True), 7)
    assert sizes == {2 * window}
