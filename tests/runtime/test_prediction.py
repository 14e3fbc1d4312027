"""Predicted latents: exact where the model's data prediction does what the predictor assumes of it."""

from __future__ import annotations

import math

import pytest
import torch
from toy import make_scheduler, noise, seeded

from parasample.bridge.schedulers import ReadScheduler, read_scheduler
from parasample.runtime.prediction import LatentPredictor

STEPS = 12


def read(name: str) -> ReadScheduler:
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(STEPS)
    return read_scheduler(scheduler)


def follow(
    found: ReadScheduler, data_at: list[torch.Tensor], ahead: int, seed: int = 3
) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
    """States of a run whose data predictions are given, and those predicted `ahead` steps before."""
    table, start = found.table, noise(2, 6, seed=1).double()
    source, drawn = seeded(seed), {}

    def draw(step: int) -> torch.Tensor | None:
        drawn[step] = found.noise.draw(step, start, source)
        return drawn[step]

    predictor = LatentPredictor(table, start, draw, found.to_output)
    states, outputs, predicted = [start], [], {}
    for i in range(STEPS):
        predictor.observe(states[i])
        if i + ahead < STEPS and i > 1:
            predicted[i + ahead] = predictor.predict(i + ahead)
        outputs.append((data_at[i] - table.x0_state[i] * states[i]) / table.x0_output[i])
        following = torch.zeros_like(start)
        for k in range(min(table.depth, i) + 1):
            following += table.state[i][k] * states[i - k] + table.output[i][k] * outputs[i - k]
        if table.noise[i]:
            while i not in drawn:
                predictor._noise_of(len(drawn))
            following += table.noise[i] * drawn[i]
        states.append(following)
        if i + 1 < STEPS:
            predictor.advance(outputs[i], following)
    return states, predicted


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++2m", "euler", "flow-euler", "sde-dpm++"])
@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_a_constant_data_prediction_is_foreseen_exactly(name: str, ahead: int) -> None:
    """Noise included: it is known beforehand."""
    states, predicted = follow(read(name), [noise(2, 6, seed=5).double()] * STEPS, ahead)
    assert predicted
    for step, state in predicted.items():
        torch.testing.assert_close(state, states[step], rtol=1e-6, atol=1e-6)


def test_a_data_prediction_linear_in_lambda_is_foreseen_exactly() -> None:
    found = read("ddim")
    levels = [math.log(a / s) for a, s in zip(found.table.alpha[:-1], found.table.sigma[:-1], strict=True)]
    base, slope = noise(2, 6, seed=5).double(), noise(2, 6, seed=6).double()
    states, predicted = follow(found, [base + level * slope for level in levels], ahead=1)
    for step, state in predicted.items():
        if step > 4:  # before that it extrapolates less far, on purpose
            torch.testing.assert_close(state, states[step], rtol=1e-6, atol=1e-6)


def test_an_output_is_carried_over_to_the_true_state() -> None:
    """With the slope of Gaussian data: exact for that model."""
    found = read("ddim")
    table, start = found.table, noise(2, 6, seed=1).double()
    predictor = LatentPredictor(table, start, lambda _: None, None)

    def output(step: int, state: torch.Tensor) -> torch.Tensor:
        alpha, sigma = table.alpha[step], table.sigma[step]
        data = alpha / (alpha**2 + sigma**2) * state
        return (data - table.x0_state[step] * state) / table.x0_output[step]

    predictor.advance(output(0, start), start * 0.9)
    guess = predictor.predict(2)
    truth = guess + 0.1 * noise(2, 6, seed=2).double()
    predictor.advance(output(1, start * 0.9), truth)
    corrected = predictor.correct(output(2, guess))
    torch.testing.assert_close(corrected, output(2, truth), rtol=1e-9, atol=1e-9)
    assert torch.equal(predictor.correct(corrected), corrected), "only once"


def test_a_state_changed_from_outside_is_taken() -> None:
    found = read("ddim")
    predictor = LatentPredictor(found.table, noise(1, 3, seed=1), lambda _: None, None)
    changed = noise(1, 3, seed=9)
    predictor.observe(changed)
    assert torch.equal(predictor.state, changed)
