"""A sample of a batch costs, and becomes, what it would alone: each has its own window and its own stop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import make_scheduler, mixture_epsilon, noise, seeded

import parasample as ps
from parasample.config import UPDATES

STEPS, BATCH = 40, 8


# Samples of unequal difficulty: the sharper its data, the more rounds a sample takes.
SPREADS = torch.linspace(0.03, 1.0, BATCH, dtype=torch.float64)[:, None]


def starts() -> torch.Tensor:
    return noise(BATCH, 32, dtype=torch.float64)


def solve(name: str, update: Any, samples: list[int]) -> ps.Solution:
    config = ps.Picard(window=16, tolerance=0.02, update=update)
    return ps.sample(
        mixture_epsilon, make_scheduler(name), starts()[samples], config, STEPS,
        {"spread": SPREADS[samples]}, generator=[seeded(sample) for sample in samples],
    )  # fmt: skip


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++2m"])
def test_a_batch_is_as_cheap_as_its_samples_alone(name: str, update: Any) -> None:
    together = solve(name, update, list(range(BATCH)))
    alone = [solve(name, update, [sample]) for sample in range(BATCH)]
    assert together.stats.evaluations <= 1.05 * sum(one.stats.evaluations for one in alone)
    assert together.stats.rounds == max(one.stats.rounds for one in alone)
    torch.testing.assert_close(
        together.sample, torch.cat([one.sample for one in alone]), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("update", UPDATES)
def test_a_finished_sample_is_not_evaluated_again(update: Any) -> None:
    """A sample's conditioning counts its evaluations; after the round that finishes it, there are none."""
    evaluated: list[set[int]] = []

    def model(x: torch.Tensor, t: torch.Tensor, index: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        evaluated.append(set(index.flatten().tolist()))
        return mixture_epsilon(x, t, spread)

    found = ps.sample(
        model, make_scheduler("ddim"), starts(), ps.Picard(window=16, tolerance=0.02, update=update), STEPS,
        {"index": torch.arange(BATCH)[:, None], "spread": SPREADS},
    )  # fmt: skip
    last = [max(r for r, samples in enumerate(evaluated) if i in samples) for i in range(BATCH)]
    assert len(set(last)) > 1, "the samples must differ for this test to say something"
    for sample in range(BATCH):
        begins = [record.begin[sample] for record in found.stats.history]
        assert begins == sorted(begins)
        assert begins[last[sample]] == STEPS, "its last evaluation must be the one that finishes it"


def test_tolerance_bounds_the_error() -> None:
    x_T = starts()
    precise = ps.sample(mixture_epsilon, make_scheduler("ddim"), x_T, ps.Picard("full", 0), STEPS).sample
    errors = []
    for tolerance in (0.1, 0.01, 0.001):
        found = ps.sample(mixture_epsilon, make_scheduler("ddim"), x_T, ps.Picard(16, tolerance), STEPS)
        errors.append(float((found.sample - precise).square().mean().sqrt()))
        assert errors[-1] <= 2 * tolerance
    assert errors[0] > errors[-1]
