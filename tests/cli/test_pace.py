"""The demo keeps its time: threads that are in each other's way are left out, and so is what does not fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

import parasample as ps
from parasample.cli.pace import MOST_S, Programme, faster_threads, fit
from parasample.cli.sampling import Case

SAMPLERS = (("ddpm", 1000), ("ddim", 100), ("dpm++", 50))
ASKED = Programme(
    ["a sneaker", "a dress", "a bag", "an ankle boot"],
    [Case(sampler, steps, ps.Picard(window=16)) for sampler, steps in SAMPLERS],
    Case("ddim", 100, ps.Picard(window="full", record=True)),
)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def slower_with(threads: int) -> Callable[[], None]:
    return lambda: time.sleep(0.05 if torch.get_num_threads() == threads else 0.001)


@pytest.mark.parametrize(("slow", "kept"), [(2, 1), (1, 2)])
def test_the_faster_threads_are_kept_for_the_run_only(two_threads: None, slow: int, kept: int) -> None:
    with faster_threads(slower_with(slow)):
        assert torch.get_num_threads() == kept
    assert torch.get_num_threads() == 2


def steps(programme: Programme) -> list[int]:
    return [case.steps for case in programme.cases]


def test_a_quiet_machine_leaves_nothing_out() -> None:
    assert fit(ASKED, 0.008, prompts_given=False, spent_s=5) == ASKED


@pytest.mark.parametrize(
    ("step_s", "prompts", "ddpm"), [(0.018, 2, 1000), (0.035, 1, 1000), (0.08, 1, 350), (0.11, 1, 200)]
)
def test_prompts_go_first_then_steps_of_the_longest(step_s: float, prompts: int, ddpm: int) -> None:
    fitted = fit(ASKED, step_s, prompts_given=False, spent_s=5)
    assert len(fitted.prompts) == prompts and steps(fitted) == [ddpm, 100, 50]
    assert fitted.seconds(step_s) + 2 * 5 <= MOST_S
    assert ("DDPM took" in fitted.note) == (ddpm < 1000)


def test_what_was_spent_before_counts() -> None:
    assert steps(fit(ASKED, 0.08, prompts_given=False, spent_s=25))[0] < 350


def test_a_very_slow_machine_takes_a_tenth_of_the_steps_and_says_so() -> None:
    fitted = fit(ASKED, 1.0, prompts_given=False, spent_s=5)
    assert steps(fitted) == [100, 10, 10] and fitted.trajectory.steps == 20
    assert "a tenth of its steps" in fitted.note
    assert all(case.method.window in ("full", 16) for case in fitted.cases)


def test_prompts_that_were_asked_for_stay() -> None:
    fitted = fit(ASKED, 0.03, prompts_given=True, spent_s=5)
    assert fitted.prompts == ASKED.prompts and steps(fitted)[0] < 1000
