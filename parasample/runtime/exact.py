"""Exact mode: finished states are the scheduler's own, equal to sequential sampling bit for bit.

A state is final when the scheduler's own `step` made it from a model output at exactly the final state before
it, evaluated in the first rows of a call of the one batch size that every call of the run has: the last bits
of an output may depend on its place in the batch, too. Guesses of later states are right to rounding but
hardly ever to the last bit, so that each round finishes one step: this is a proof, not a way to save time.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from parasample.runtime.picard import PicardSolver, Share


class OwnSteps(Protocol):
    """The scheduler's own steps, taken in order."""

    def commit(self, step: int, output: Tensor, state: Tensor) -> Tensor:
        """The next states [B, ...] from raw outputs [B, ...] at states [B, ...]."""
        ...

    def scale(self, step: int, state: Tensor) -> Tensor:
        """Model inputs [B, ...] for states [B, ...], by the scheduler's own scale_model_input."""
        ...

    def rewind(self, step: int) -> None:
        """Undo the commits of `step` and of all after it."""
        ...


class ExactSolver(PicardSolver):
    """A `PicardSolver` whose samples advance together, by the scheduler's own arithmetic."""

    def __init__(self, *args: Any, own: OwnSteps, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own = own
        self._raw = self.states[0]  # raw outputs at the first unfinished states, [B, ...]

    def _choose(self, start_only: bool) -> tuple[list[int], list[int]]:
        begin = self.progress[0].begin
        rows = [begin] if start_only else list(range(begin, min(begin + self.window, self.num_steps)))
        if not start_only:  # equal batch size in every call: repeat the last state up to a whole window
            size = -(-self.window // self.ranks.size) * self.ranks.size
            rows += rows[-1:] * (size - len(rows))
        steps = [row for row in rows for _ in range(self.batch)]
        return steps, list(range(self.batch)) * len(rows)

    def model_inputs(self, part: Share) -> Tensor:
        inputs = super().model_inputs(part)
        begin = self.progress[0].begin
        first = part.steps == begin
        if self.recurrence.input_scale is not None and bool(first.any()):
            inputs[first] = self._own.scale(begin, self.state(begin)).to(inputs.dtype)[part.samples[first]]
        return inputs

    def close_round(self, part: Share, raw_outputs: Tensor) -> None:
        mine = raw_outputs.reshape(len(part), -1)
        whole = self.ranks.all_gather(mine)
        self.stats.bytes_sent += mine.numel() * mine.element_size() * (self.ranks.size - 1)
        self._raw = whole[: self.batch].reshape(self.batch, *raw_outputs.shape[1:])
        super().close_round(part, raw_outputs)

    def _update(self) -> None:
        self._advance_exactly()
        if not self.done:
            super()._update()
        else:
            self._record(0.0, None)

    def _advance_exactly(self) -> None:
        row = self.progress[0].begin
        state = self._own.commit(row, self._raw, self.state(row).clone())
        self.states[row + 1] = state.reshape(self.batch, -1).to(self.dtype)
        self._require_finite(row)
        for progress in self.progress:
            progress.finish(row + 1)

    def _require_finite(self, step: int) -> None:
        sums = self.states[step + 1].sum(dim=1).tolist()
        for sample, value in enumerate(sums):
            self._check_finite([value], step, sample)

    def restart(self, row: int, state: Tensor) -> None:
        """Replace the state before step `row`; the scheduler's own history goes back there, too."""
        self._own.rewind(row)
        super().restart(row, state)
