"""Secant corrections of whole windows with no host synchronisation: `parasample.runtime.secant` in batches.

The method and its symbols are explained there. Here every sample's window of W rows is solved in every round;
a row that has no change to learn from, or none that counts, has zero vectors and so gets zero weights. The
corrections stay factored, weights [T, B, m] times defects [T, B, m, D]: the scan adds them as it reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parasample.runtime.secant import RIDGE


class DeviceSecants:
    """The last `memory` changes of every (step, sample); buffers have the spare row T of `DeviceRounds`.

    Args:
        outputs: [T+1, B, D], whose dtype and device are taken.
        memory: m, changes kept of each row.
        green: [T+1, T], see `parasample.runtime.secant.green`.
        slope: [T], see `parasample.plan.updates.UpdateRule`.
    """

    def __init__(self, outputs: Tensor, memory: int, green: Tensor, slope: Tensor) -> None:
        rows, batch, size = outputs.shape
        self.memory = memory
        self._changes = outputs.new_zeros((rows, batch, memory, size))
        self._defects = torch.zeros_like(self._changes)
        self._weights = outputs.new_zeros((rows, batch, memory))
        self._seen = torch.zeros(rows, batch, dtype=torch.int64, device=outputs.device)
        self._slope = slope
        self._green = outputs.new_zeros((rows, rows))  # with the spare row and column
        self._green[:, :-1] = green.to(outputs)

    def learn(self, steps: Tensor, slots: Tensor, samples: Tensor, change: Tensor, defect: Tensor) -> None:
        """Note by how much states and outputs, [n, D] each, differ from the evaluation before at `slots`.

        Slots, samples and steps are int64 [n]; a first evaluation has nothing to compare with.
        """
        at = slots, samples
        seen = self._seen[at]
        first = (seen == 0)[:, None]
        slot = (seen - 1).clamp(min=0) % self.memory
        change = change.masked_fill(first, 0)
        self._changes[slots, samples, slot] = change
        self._defects[slots, samples, slot] = defect.masked_fill(first, 0) - self._slope[steps, None] * change
        self._seen[at] = seen + 1

    def solve(self, slots: Tensor, samples: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [T, B, m] and directions [T, B, m, D] of every output's correction.

        Slots and samples are int64 [B, W]; `move` [B, W, D] is how far the update without corrections went
        from the evaluations. Rows outside of the windows keep the weights they had.
        """
        batch, window, size = move.shape
        m = self.memory
        outside = (slots == len(self._seen) - 1)[..., None, None]
        changes = self._changes[slots, samples].masked_fill(outside, 0)  # [B, W, m, D]
        defects = self._defects[slots, samples].masked_fill(outside, 0)
        projected = _regularised_inverse(changes @ changes.mT) @ changes  # P dX
        right = (projected @ move[..., None]).reshape(batch, window * m, 1)
        coupling = projected.reshape(batch, -1, size) @ defects.reshape(batch, -1, size).mT
        effect = self._green[slots[:, :, None], slots[:, None, :]]  # [B, W, W]
        coupling = coupling.view(batch, window, m, window, m) * effect[:, :, None, :, None]
        system = coupling.view(batch, window * m, window * m).neg_()
        system.diagonal(dim1=1, dim2=2).fill_(1.0)
        weights = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        self._weights[slots, samples] = weights.view(batch, window, m)
        return self._weights[:-1], self._defects[:-1]


def _regularised_inverse(gram: Tensor) -> Tensor:
    """(gram + ridge)^-1 of positive semidefinite [..., m, m], by Gauss-Jordan elimination.

    The ridge makes pivots positive; written out because library inverses may wait to look at their result.
    """
    m = gram.shape[-1]
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1).sum(-1) + torch.finfo(gram.dtype).tiny ** 0.5
    unit = torch.eye(m, dtype=gram.dtype, device=gram.device)
    left = gram + ridge[..., None, None] * unit
    inverse = unit.expand_as(left)
    for k in range(m):
        pivot = left[..., k, k, None, None]
        row, inverse_row = left[..., k, None, :] / pivot, inverse[..., k, None, :] / pivot
        factor = left[..., :, k, None] - unit[:, k, None]  # row k itself becomes `row`
        left, inverse = left - factor * row, inverse - factor * inverse_row
    return inverse
