"""What a round costs, and which window is the fastest: plain numbers, no torch.

A device charges for a round by the number of states that are evaluated in it. Measured at a few sizes
(`parasample.bridge.measure`), that charge and a prediction of the rounds (`parasample.plan.rounds`) give the
seconds of a whole run before it is made.
"""

from __future__ import annotations

import bisect
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CostCurve:
    """Seconds of one round by the number of states in it: linear between measured sizes, never falling.

    Attributes:
        sizes: [N] numbers of states that were measured, ascending.
        seconds: [N] seconds of a round of that many.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @classmethod
    def from_samples(cls, samples: Iterable[tuple[int, float]]) -> CostCurve:
        """From timings (states, seconds), several per size and noisy; needs at least one.

        The median of each size; sizes that appear cheaper than smaller ones are averaged with them, since no
        device does more work in less time (pool-adjacent-violators).
        """
        grouped: dict[int, list[float]] = defaultdict(list)
        for size, seconds in samples:
            grouped[size].append(seconds)
        if not grouped:
            raise ValueError("found no timings; a cost curve needs at least one")
        pools: list[tuple[float, int, list[int]]] = []  # mean, weight, sizes
        for size in sorted(grouped):
            pools.append((statistics.median(grouped[size]), len(grouped[size]), [size]))
            while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
                (mean1, weight1, sizes1), (mean2, weight2, sizes2) = pools[-2:]
                weight = weight1 + weight2
                pools[-2:] = [((mean1 * weight1 + mean2 * weight2) / weight, weight, sizes1 + sizes2)]
        points = [(size, mean) for mean, _, members in pools for size in members]
        return cls(tuple(size for size, _ in points), tuple(seconds for _, seconds in points))

    def __call__(self, states: float) -> float:
        """Seconds of a round of `states`; beyond what was measured, along the nearest two sizes' line."""
        if len(self.sizes) == 1:
            return self.seconds[0] * max(states / self.sizes[0], 1.0)
        right = min(max(bisect.bisect_left(self.sizes, states), 1), len(self.sizes) - 1)
        (x0, x1), (y0, y1) = self.sizes[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        value = y0 + (y1 - y0) * (states - x0) / (x1 - x0)
        return max(value, self.seconds[0] * 0.1)  # extrapolated to small sizes, a charge never reaches 0


@dataclass(frozen=True)
class Prediction:
    """What one window is predicted to cost. `window` 1 stands for sequential sampling."""

    window: int
    rounds: float
    evaluations: float
    seconds: float


def predict_seconds(evaluations: Sequence[float], cost: CostCurve) -> float:
    """Seconds of a run whose rounds evaluate these many states (over all samples)."""
    return sum(cost(states) for states in evaluations)


def candidate_windows(num_steps: int) -> list[int]:
    """Windows worth comparing: 4, 8, 16, ... and the full number of steps."""
    windows, window = [], 4
    while window < num_steps:
        windows.append(window)
        window *= 2
    return [*windows, num_steps]


# A wider window must promise this much less time than a narrower one (or sequential sampling), because a
# prediction is good to about a tenth and a narrow window needs less memory.
WORTHWHILE = 0.97


def recommend(predictions: Sequence[Prediction]) -> Prediction:
    """The narrowest window within 3% of the fastest; window 1, sequential, where nothing is faster."""
    fastest = min(prediction.seconds for prediction in predictions)
    ordered = sorted(predictions, key=lambda prediction: prediction.window)
    return next(prediction for prediction in ordered if prediction.seconds * WORTHWHILE <= fastest)
