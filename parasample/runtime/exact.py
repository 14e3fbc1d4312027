"""Exact mode: finished states are the scheduler's own, equal to sequential sampling bit for bit.

The iteration only guesses where the trajectory goes. A state is final when the scheduler's own `step` made
it from a model output that was evaluated at exactly the final state before it, in a call of the one batch
size that every call of the run has. A guess that happens to be right to the last bit is final, too; others
cost one round per step.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
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
        self._raw: dict[int, Tensor] = {}

    def _choose(self, start_only: bool) -> tuple[list[int], list[int]]:
        begin = self.progress[0].begin
        rows = [begin] if start_only else list(range(begin, min(begin + self.window, self.num_steps)))
        steps = [row for _ in range(self.batch) for row in rows]
        samples = [sample for sample in range(self.batch) for _ in rows]
        if start_only:
            return steps, samples
        # Equal batch size in every call: repeat the last state up to a whole window on every rank.
        size = -(-self.window // self.ranks.size) * self.ranks.size * self.batch
        missing = size - len(steps)
        return steps + steps[-1:] * missing, samples + samples[-1:] * missing

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
        steps, samples = self._item_steps, self._item_samples
        self._raw = {}
        for position, (step, sample) in enumerate(zip(steps, samples, strict=True)):
            rows = self._raw.setdefault(step, whole.new_zeros((self.batch, whole.shape[1])))
            rows[sample] = whole[position]
        self._raw_shape = raw_outputs.shape[1:]
        super().close_round(part, raw_outputs)

    def _update(self) -> None:
        self._advance_exactly()
        if not self.done:
            super()._update()
        else:
            self._record(0.0, None)

    def _advance_exactly(self) -> None:
        row = self.progress[0].begin
        while row in self._raw and torch.equal(self.states[row], self.anchors[row]):
            raw = self._raw[row].reshape(self.batch, *self._raw_shape)
            self.states[row + 1] = (
                self._own.commit(row, raw, self.state(row)).reshape(self.batch, -1).to(self.dtype)
            )
            self._require_finite(row)
            row += 1
        for progress in self.progress:
            progress.finish(row)

    def _require_finite(self, step: int) -> None:
        sums = self.states[step + 1].sum(dim=1).tolist()
        for sample, value in enumerate(sums):
            self._check_finite([value], step, sample)

    def restart(self, row: int, state: Tensor) -> None:
        """Replace the state before step `row`; the scheduler's own history goes back there, too."""
        self._own.rewind(row)
        self._raw = {}
        super().restart(row, state)
