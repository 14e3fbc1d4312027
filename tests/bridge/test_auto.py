"""window="auto" observes the first call and chooses for the next; sequential where that is faster."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import tiny_pipelines
import torch

import parasample as ps
from parasample.bridge.auto import FIRST_WINDOW, WindowChooser, chooser_for, resolve_window
from parasample.bridge.schedulers import read_scheduler
from parasample.runtime.stats import RoundRecord, Stats

STEPS = 50


@dataclass
class Observed:
    """What a chooser reads of a finished solver, with rounds at made-up prices."""

    table: object
    stats: Stats
    window: int = FIRST_WINDOW
    batch: int = 1
    num_steps: int = STEPS
    done: bool = True
    config: ps.Picard = field(default_factory=lambda: ps.Picard(window=FIRST_WINDOW))
    anchors: torch.Tensor = field(default_factory=lambda: torch.zeros(STEPS + 1, 1, 16))
    outputs: torch.Tensor = field(
        default_factory=lambda: torch.linspace(0, 2, STEPS).view(-1, 1, 1).expand(-1, 1, 16)
    )
    recurrence: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(x0_coef=torch.tensor([[0.0, 0.5]]).expand(STEPS, 2))
    )


def observed(price: float) -> Observed:
    """A run whose rounds cost 1 s plus `price` for each state beyond the first."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    stats = Stats(num_steps=STEPS, batch=1)
    for states in (1, 32, 32, 30, 20, 12, 6, 3):
        stats.add(RoundRecord(states, 0.1, [0], seconds=1.0 + price * (states - 1)))
    return Observed(read_scheduler(scheduler).table, stats)


def chosen(price: float) -> int:
    chooser = WindowChooser()
    chooser.observe(observed(price))  # type: ignore[arg-type]
    return chooser.window(STEPS)


def test_wide_where_states_are_free_and_sequential_where_they_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert chosen(price=0.0) >= 16
    assert 1 < chosen(price=0.2) <= chosen(price=0.0)
    with caplog.at_level(logging.INFO, logger="parasample"):
        assert chosen(price=1.0) == 1
    assert "sequentially" in caplog.text


def test_before_the_first_call_a_fixed_window() -> None:
    assert resolve_window(ps.Picard(), 100).window == FIRST_WINDOW
    assert resolve_window(ps.Picard(), 10).window == 10
    assert resolve_window(ps.Picard(window=7), 100).window == 7
    assert WindowChooser().window(100) == FIRST_WINDOW


def test_a_window_that_was_asked_for_is_not_weighed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the time since the last step go uncounted."""
    pipe, call = tiny_pipelines.stable_diffusion()
    monkeypatch.setattr(WindowChooser, "observe", lambda *_: pytest.fail("nobody asked"))
    with caplog.at_level(logging.INFO, logger="parasample"), ps.parallelize(pipe, ps.Picard(window=4)):
        tiny_pipelines.run(pipe, call, num_inference_steps=6)
    assert "auto" not in caplog.text
    monkeypatch.setattr(WindowChooser, "observe", lambda *_: time.sleep(0.3))
    with ps.parallelize(pipe, ps.Picard()) as handle:
        tiny_pipelines.run(pipe, call, num_inference_steps=6)
        assert handle.stats.seconds > 0.3


def test_a_pipeline_gives_the_sequential_result_whatever_is_chosen() -> None:
    pipe, call = tiny_pipelines.stable_diffusion()
    expected = tiny_pipelines.run(pipe, call, num_inference_steps=20)
    with ps.parallelize(pipe, ps.Picard(tolerance=1e-4)):
        for _ in range(3):
            found = tiny_pipelines.run(pipe, call, num_inference_steps=20)
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_fewer_steps_than_the_scheduler_has_fit_the_window() -> None:
    pipe, call = tiny_pipelines.stable_diffusion_img2img()  # runs over a part of its timesteps only
    with ps.parallelize(pipe, ps.Picard()) as handle:
        tiny_pipelines.run(pipe, call, num_inference_steps=30)
    assert max(handle.stats.window) <= handle.stats.num_steps


@pytest.mark.parametrize("change", [{"tolerance": 1e-3}, {"update": "v"}], ids=["tolerance", "update"])
def test_a_window_chosen_for_one_method_is_not_used_for_another(change: dict[str, Any]) -> None:
    model, start = torch.nn.Identity(), torch.zeros(1, 4)
    scheduler = diffusers.DDIMScheduler()
    first = chooser_for(model, scheduler, start, ps.Picard())
    assert chooser_for(model, scheduler, start, ps.Picard()) is first, "a second call learns from the first"
    assert chooser_for(model, scheduler, start, replace(ps.Picard(), **change)) is not first
