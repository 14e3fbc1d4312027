"""Which states a round evaluates, and which are finished: the controller, on plain numbers.

The update proposes new states; `SampleProgress` decides. Row i is the state before step i. Its *error* is how
far it has moved since the model was last evaluated at it, squared, in the units of the stopping rule, divided
by tolerance^2: at most 1 means that the evaluation still holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# A row whose error exceeds this fraction of the tolerance is evaluated again although it would still be
# accepted: what rows depend on must be more accurate than what is asked of them.
REEVALUATE_AT = 0.7


class SampleProgress:
    """Progress of one sample: rows before `begin` are finished, rows up to `hold` have been evaluated."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.begin = 0
        self.hold = -1
        self._error = [math.inf] * (num_steps + 1)

    @property
    def done(self) -> bool:
        return self.begin >= self.num_steps

    def choose(self, window: int, limit: int, threshold: float) -> list[int]:
        """The earliest rows of the window that need an evaluation, at most `limit` of them.

        A row needs one when it never had one or when its error exceeds `threshold` (0 to 1: below 1 a row is
        evaluated again although it would still be accepted, which makes the rows after it more accurate).
        """
        chosen: list[int] = []
        for row in range(self.begin, min(self.begin + window, self.num_steps)):
            if row == self.begin or row > self.hold or not self._error[row] <= threshold:
                chosen.append(row)
                if len(chosen) == limit:
                    break
        return chosen

    def scan_end(self, window: int) -> int:
        """One past the last step the scan must make so that the next window is filled."""
        return min(self.hold + 1 + window, self.num_steps)

    def evaluated(self, rows: Sequence[int]) -> None:
        """Note that the model was evaluated at `rows` as they stand."""
        for row in rows:
            self._error[row] = 0.0
        self.hold = max(self.hold, rows[-1])

    def advance(self, errors: Sequence[float]) -> None:
        """Take the errors of rows begin + 1, begin + 2, ... after an update and move `begin`."""
        for offset, error in enumerate(errors):
            row = self.begin + 1 + offset
            self._error[row] = error
        while self.begin <= self.hold and self._error[self.begin] <= 1.0:
            self.begin += 1

    def finish(self, row: int) -> None:
        """Rows before `row` are final, and the state at `row` was replaced by its final value."""
        self.begin = row
        self.hold = max(self.hold, row - 1)
        self._error[row] = math.inf

    def restart(self, row: int) -> None:
        """Forget everything from `row` on: its state was replaced from outside."""
        self.begin = row
        self.hold = row - 1
        self._error[row:] = [math.inf] * (self.num_steps + 1 - row)


def share(num_items: int, num_ranks: int, rank: int) -> list[int]:
    """Positions that `rank` evaluates out of `num_items`: contiguous, equal counts, the last one repeated.

    Equal counts let one all-gather collect the outputs; repeated positions are dropped after it.
    """
    count = -(-num_items // num_ranks)
    first = rank * count
    return [min(position, num_items - 1) for position in range(first, first + count)]
