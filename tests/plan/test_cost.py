"""Cost curves, recommendations, and rounds predicted from a pilot."""

from __future__ import annotations

import pytest

from parasample.plan.cost import CostCurve, Prediction, candidate_windows, predict_seconds, recommend
from parasample.plan.rounds import Profile, fit_scale, simulate


def flat_profile(steps: int, contraction: float) -> Profile:
    """Every step forgets a tenth of the error and the data prediction travels evenly."""
    travel = tuple(tuple(abs(i - j) / steps for j in range(steps)) for i in range(steps))
    keep, gain, slope = (0.9,) * steps, (0.1,) * steps, (0.5,) * steps
    return Profile(keep, gain, slope, ((contraction,) * steps,), travel)


def test_curve_interpolates_and_extrapolates() -> None:
    curve = CostCurve((1, 4, 16), (1.0, 2.0, 6.0))
    assert [curve(n) for n in (1, 4, 10, 16, 28)] == pytest.approx([1.0, 2.0, 4.0, 6.0, 10.0])


def test_curve_takes_medians_and_never_falls() -> None:
    curve = CostCurve.from_samples([(1, 1.0), (1, 9.0), (1, 1.0), (2, 0.5), (4, 3.0)])
    assert curve.sizes == (1, 2, 4)
    assert list(curve.seconds) == sorted(curve.seconds)
    assert curve(4) == 3.0


def test_curve_of_one_size_is_no_cheaper_below_it() -> None:
    curve = CostCurve.from_samples([(8, 2.0)])
    assert curve(1) == 2.0 and curve(16) == 4.0


def test_curve_without_timings_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        CostCurve.from_samples([])


@pytest.mark.parametrize(("steps", "windows"), [(4, [4]), (20, [4, 8, 16, 20]), (2, [2])])
def test_candidate_windows(steps: int, windows: list[int]) -> None:
    assert candidate_windows(steps) == windows


def test_recommends_sequential_where_batches_are_not_cheaper() -> None:
    predictions = [Prediction(1, 50, 50, 5.0), Prediction(4, 20, 70, 7.0), Prediction(8, 12, 90, 9.0)]
    assert recommend(predictions).window == 1


def test_recommends_the_narrower_of_two_equals() -> None:
    predictions = [Prediction(1, 50, 50, 5.0), Prediction(8, 9, 70, 2.02), Prediction(16, 8, 90, 2.0)]
    assert recommend(predictions).window == 8


def test_window_one_takes_every_step() -> None:
    assert simulate(flat_profile(20, 0.5), 1, 0.01) == [1] * 20


def test_wider_windows_take_fewer_rounds_and_more_evaluations() -> None:
    runs = [simulate(flat_profile(64, 0.5), window, 0.01) for window in (2, 4, 8, 16, 64)]
    rounds, evaluations = [len(run) for run in runs], [sum(run) for run in runs]
    assert rounds == sorted(rounds, reverse=True) and rounds[-1] < rounds[0] / 3
    assert evaluations[-1] > evaluations[0]
    assert all(run[0] == 1 for run in runs), "only the start is worth an evaluation at first"


def test_states_per_round_are_respected() -> None:
    assert max(simulate(flat_profile(32, 0.5), 32, 0.01, states_per_round=4)) == 4


def test_scale_recovers_what_a_run_took() -> None:
    truth = simulate(flat_profile(48, 0.8), 16, 0.01)
    fitted = fit_scale(flat_profile(48, 1.0), 16, 0.01, len(truth), sum(truth))
    predicted, expected = simulate(fitted, 8, 0.01), simulate(flat_profile(48, 0.8), 8, 0.01)
    assert len(predicted) == pytest.approx(len(expected), rel=0.15)


def test_seconds_are_the_sum_over_rounds() -> None:
    assert predict_seconds([1, 4, 4], CostCurve((1, 4), (1.0, 2.0))) == 5.0
