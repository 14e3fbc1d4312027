"""Exact mode: finished states come from the scheduler's own step, so that they equal sequential sampling bit for bit.

The iteration only guesses where the trajectory goes. A state is final when the scheduler's own `step` made it from
a model output that was evaluated at exactly the final state before it, in a call of the one batch size that every
call of the run has. A guess that happens to be right to the last bit is final, too; others cost one round per step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parasample.runtime.picard import PicardSolver, Share

# (step, raw outputs [B, ...], states [B, ...]) -> next states [B, ...], by the scheduler's own step
Commit = Callable[[int, Tensor, Tensor], Tensor]
# (step, states [B, ...]) -> model inputs [B, ...], by the scheduler's own scale_model_input
Scale = Callable[[int, Tensor], Tensor]


class ExactSolver(PicardSolver):
    """A `PicardSolver` whose samples advance together, by the scheduler's own arithmetic."""

    def __init__(self, *args: Any, commit: Commit, scale: Scale, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._commit = commit
        self._scale = scale
        self._raw: dict[int, Tensor] = {}

    def _choose(self, start_only: bool) -> tuple[list[int], list[int]]:
        begin = self.progress[0].begin
        rows = [begin] if start_only else list(range(begin, min(begin + self.window, self.num_steps)))
        steps = [row for _ in range(self.batch) for row in rows]
        samples = [sample for sample in range(self.batch) for _ in rows]
        if start_only:
            return steps, samples
        # Equal batch size in every call: repeat the last state up to the size of a whole window on every rank.
        size = -(-self.window // self.ranks.size) * self.ranks.size * self.batch
        missing = size - len(steps)
        return steps + steps[-1:] * missing, samples + samples[-1:] * missing

    def model_inputs(self, part: Share) -> Tensor:
        inputs = super().model_inputs(part)
        begin = self.progress[0].begin
        first = part.steps == begin
        if self.input_scale is not None and bool(first.any()):
            inputs[first] = self._scale(begin, self.state(begin)).to(inputs.dtype)[part.samples[first]]
        return inputs

    def close_round(self, part: Share, raw_outputs: Tensor) -> None:
        whole = self.ranks.all_gather(raw_outputs.reshape(len(part), -1))
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
            self.states[row + 1] = self._commit(row, raw, self.state(row)).reshape(self.batch, -1).to(self.dtype)
            row += 1
        for progress in self.progress:
            progress.begin = row
            progress.hold = max(progress.hold, row - 1)
