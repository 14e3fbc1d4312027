"""Predict the rounds of a window without running it: the controller, on a model of how errors shrink.

The error of a state is measured in its implied data prediction. Written in data form,
x[i+1] = a x[i] + sum_k c_k D[i-k] + s z, the error obeys

    E[i+1] = keep[i] E[i] + gain[i] d[i],     keep = a alpha[i] / alpha[i+1],  gain = sum_k c_k / alpha[i+1]

where d[i] is the error of the data prediction that the update uses at step i:

    an evaluated row:   d = slope E[i] + contraction[i] * E at its last evaluation
    a row never evaluated, held at row l:   d = |D*[i] - D*[l]|, the way from l to i

`slope` is what the update assumes (alpha dD/dx), `contraction` what it does not know of the model's Jacobian.
All of it is read off one recorded run (a pilot, `fit_profile`); `simulate` then lets the controller that also
runs the real thing (`parasample.plan.window`) act on these errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from parasample.plan.table import AffineTable
from parasample.plan.window import REEVALUATE_AT, SampleProgress


@dataclass(frozen=True)
class Profile:
    """How the errors of a run behave; see the module's equations.

    Attributes:
        keep, gain, slope: [T].
        contraction: [A][T] for a row evaluated once, twice, ..., A times or more often.
        travel: [T][T] RMS distance of the converged data predictions of two rows.
        attendance: evaluations of a wide window's round over what the equations say.
    """

    keep: tuple[float, ...]
    gain: tuple[float, ...]
    slope: tuple[float, ...]
    contraction: tuple[tuple[float, ...], ...]
    travel: tuple[tuple[float, ...], ...]
    attendance: float = 1.0

    @property
    def num_steps(self) -> int:
        return len(self.keep)

    def scaled(self, factor: float) -> Profile:
        """The same with every contraction multiplied by `factor`."""
        return replace(self, contraction=tuple(tuple(c * factor for c in row) for row in self.contraction))


@dataclass(frozen=True)
class Pilot:
    """One recorded run of one sample, R rounds over T steps with a window.

    Attributes:
        evaluations: of one sample.
        errors: [R][T + 1] RMS distance of each state to its final value after a round, over alpha.
        residuals: [R][T + 1] the solver's own squared residuals after a round (inf where it has none).
        travel: [T][T] as in `Profile`.
    """

    window: int
    tolerance: float
    evaluations: float
    errors: tuple[tuple[float, ...], ...]
    residuals: tuple[tuple[float, ...], ...]
    travel: tuple[tuple[float, ...], ...]


def error_coefficients(table: AffineTable, prior_variance: float) -> tuple[tuple[float, ...], ...]:
    """`keep`, `gain` and `slope` of the module's equations for a scheduler's table; each [T]."""
    data = table.data_form()
    floor = 1e-3  # zero terminal SNR starts at alpha = 0
    keep, gain, slope = [], [], []
    for i in range(table.num_steps):
        alpha, after, sigma = max(table.alpha[i], floor), max(table.alpha[i + 1], floor), table.sigma[i]
        keep.append(data.state[i][0] * alpha / after)
        gain.append(sum(data.output[i]) / after)
        slope.append(alpha * alpha * prior_variance / (alpha * alpha * prior_variance + sigma * sigma))
    return tuple(keep), tuple(gain), tuple(slope)


@dataclass
class _Replay:
    """A pilot's rounds again: after each, how often rows were evaluated and their error when last."""

    ages: list[list[int]]
    anchors: list[list[float]]
    holds: list[int]
    begins: list[int]
    evaluations: list[int]


def _replay(pilot: Pilot) -> _Replay:
    steps = len(pilot.errors[0]) - 1
    progress = SampleProgress(steps)
    age, anchor = [0] * steps, [0.0] * steps
    replay = _Replay([], [], [], [], [])
    for index, residuals in enumerate(pilot.residuals):
        before = pilot.errors[index - 1] if index else pilot.errors[0]
        rows = progress.choose(pilot.window, 1 if progress.hold < 0 else pilot.window, REEVALUATE_AT**2)
        for row in rows:
            age[row] += 1
            anchor[row] = before[row] if index else 0.0  # the first round evaluates the start, which is exact
        begin = progress.begin
        progress.evaluated(rows)
        replay.begins.append(begin)
        replay.holds.append(progress.hold)
        replay.evaluations.append(len(rows))
        replay.ages.append(list(age))
        replay.anchors.append(list(anchor))
        end = progress.scan_end(pilot.window)
        progress.advance([value / pilot.tolerance**2 for value in residuals[begin + 1 : end + 1]])
        if progress.done:
            break
    return replay


MAX_AGE = 6  # evaluations of a row after which its contraction no longer changes: the secants' memory and two


def fit_profile(pilot: Pilot, table: AffineTable, prior_variance: float) -> Profile:
    """Read a profile off a pilot run: contractions by row and age, smoothed over neighbouring rows."""
    keep, gain, slope = error_coefficients(table, prior_variance)
    steps = table.num_steps
    replay = _replay(pilot)
    above = [[0.0] * steps for _ in range(MAX_AGE)]
    below = [[0.0] * steps for _ in range(MAX_AGE)]
    for index in range(1, len(replay.ages)):
        errors = pilot.errors[index]
        for row in range(replay.begins[index], min(replay.holds[index] + 1, steps)):
            source = gain[row] * replay.anchors[index][row]
            if source <= 0.0 or replay.anchors[index][row] < 0.1 * pilot.tolerance:
                continue
            known = (keep[row] + gain[row] * slope[row]) * errors[row]
            age = min(replay.ages[index][row], MAX_AGE) - 1
            above[age][row] += errors[row + 1] - known
            below[age][row] += source
    reach = max(steps // 12, 1)
    contraction: list[tuple[float, ...]] = []
    for age in range(MAX_AGE):
        smooth = []
        for row in range(steps):
            span = slice(max(row - reach, 0), row + reach + 1)
            weight = sum(below[age][span])
            if weight > 0.0:
                smooth.append(min(max(sum(above[age][span]) / weight, 0.0), 4.0))
            else:  # never seen at this age: as at the age before
                smooth.append(contraction[-1][row] if contraction else math.nan)
        contraction.append(tuple(_filled(smooth)))
    return Profile(keep, gain, slope, tuple(contraction), pilot.travel)


def _filled(values: list[float]) -> list[float]:
    """NaNs replaced by the nearest number before, else after them, else 0.5."""
    last = next((value for value in values if not math.isnan(value)), 0.5)
    filled = []
    for value in values:
        last = last if math.isnan(value) else value
        filled.append(last)
    return filled


def simulate(
    profile: Profile, window: int, tolerance: float, states_per_round: int | None = None
) -> list[int]:
    """States that each round of a run with this window evaluates; its length is the number of rounds."""
    steps = profile.num_steps
    limit = states_per_round or window
    progress = SampleProgress(steps)
    errors, anchors, ages = [0.0] * (steps + 1), [0.0] * steps, [0] * steps
    rounds: list[int] = []
    while not progress.done and len(rounds) < 2 * steps:
        rows = progress.choose(window, 1 if progress.hold < 0 else limit, REEVALUATE_AT**2)
        for row in rows:
            ages[row] += 1
            anchors[row] = errors[row]
        progress.evaluated(rows)
        rounds.append(len(rows))
        begin, end = progress.begin, progress.scan_end(window)
        _scan(profile, errors, anchors, ages, begin, progress.hold, end)
        moved = [_moved(anchors[row], errors[row]) if row <= progress.hold else math.inf
                 for row in range(begin + 1, min(end, steps - 1) + 1)]  # fmt: skip
        if end == steps:
            moved.append(0.0)
        progress.advance([(value / max(tolerance, 1e-12)) ** 2 for value in moved])
    most = min(limit, window, steps)
    return rounds[:1] + [max(min(round(count * profile.attendance), most), 1) for count in rounds[1:]]


def _scan(
    profile: Profile,
    errors: list[float],
    anchors: list[float],
    ages: list[int],
    begin: int,
    hold: int,
    end: int,
) -> None:
    """Overwrite the errors of rows begin + 1 .. end by the module's equations."""
    oldest = len(profile.contraction)
    for row in range(begin, end):
        if row <= hold:
            contraction = profile.contraction[min(ages[row], oldest) - 1][row]
            data = profile.slope[row] * errors[row] + contraction * anchors[row]
            if row == hold:
                held = data
        else:
            data = profile.travel[hold][row] + held
        errors[row + 1] = profile.keep[row] * errors[row] + profile.gain[row] * data


def _moved(before: float, after: float) -> float:
    """How far a state moved, from its error before and after: their directions are nearly unrelated."""
    return math.sqrt(before * before + after * after)


def uniform_profile(table: AffineTable, travel: Sequence[Sequence[float]], prior_variance: float) -> Profile:
    """A profile whose contraction is 1 everywhere, to be scaled to what a run took (`fit_scale`)."""
    keep, gain, slope = error_coefficients(table, prior_variance)
    ones = ((1.0,) * table.num_steps,)
    return Profile(keep, gain, slope, ones, tuple(map(tuple, travel)))


def fit_scale(profile: Profile, window: int, tolerance: float, rounds: int, evaluations: float) -> Profile:
    """The profile scaled so that a simulated run takes about as many rounds and evaluations as a real one."""

    def mismatch(factor: float) -> float:
        found = simulate(profile.scaled(factor), window, tolerance)
        return abs(math.log(len(found) / rounds)) + abs(math.log(sum(found) / evaluations))

    return profile.scaled(min((index / 20 for index in range(61)), key=mismatch))


def calibrated(profile: Profile, pilot: Pilot) -> Profile:
    """The profile with which a simulated pilot takes as many rounds and evaluations as the pilot itself."""
    profile = fit_scale(profile, pilot.window, pilot.tolerance, len(pilot.errors), pilot.evaluations)
    # A row is evaluated again when it moves by a fraction of the tolerance; near it the equations, which know
    # only norms, miss some. Narrow windows evaluate every row and are not affected.
    attendance = pilot.evaluations / sum(simulate(profile, pilot.window, pilot.tolerance))
    return replace(profile, attendance=min(max(attendance, 0.7), 1.5))
