"""The rounds that `parasample plan` predicts for the shipped model are about those that a call then takes."""

from __future__ import annotations

from typing import Any

import pytest

import parasample as ps
from parasample.bridge.load import load_pipeline, set_sampler
from parasample.bridge.measure import measure_profile
from parasample.cli.sampling import call_pipeline
from parasample.models import demo_model_path
from parasample.plan.rounds import Profile, simulate

STEPS, GUIDANCE, TOLERANCE = 50, 3.0, ps.Picard().tolerance


@pytest.fixture(scope="module")
def pipe() -> Any:
    loaded = load_pipeline(demo_model_path(), "cpu")
    set_sampler(loaded, "ddim", STEPS)
    return loaded


def call(pipe: Any, seed: int) -> None:
    call_pipeline(pipe, ["a sneaker"], STEPS, GUIDANCE, [seed])


@pytest.fixture(scope="module")
def profile(pipe: Any) -> Profile:
    return measure_profile(pipe, lambda: call(pipe, seed=0), STEPS, TOLERANCE)[0]


@pytest.mark.parametrize("window", [8, STEPS])
@pytest.mark.parametrize("seed", [0, 1])
def test_predicted_rounds_are_about_those_a_call_takes(
    pipe: Any, profile: Profile, window: int, seed: int
) -> None:
    with ps.parallelize(pipe, ps.Picard(window=window, tolerance=TOLERANCE)) as handle:
        call(pipe, seed)
        rounds = handle.stats.rounds
    predicted = len(simulate(profile, window, TOLERANCE))
    assert predicted == pytest.approx(rounds, rel=0.2, abs=1), "20 %, or one round of a wide window"
