"""Secant update: each step learns the Jacobian of its output from its own earlier evaluations.

For the row of step j let dX [m, D] be the last changes of the states it was evaluated at, and dY [m, D] the
changes of its outputs that the linear slope did not explain. The output at a new state x is taken as

    y_j(x) ~ y[j] + slope[j] (x - xa[j]) + dY^T c_j,    c_j = (dX dX^T + ridge)^-1 dX (x - xa[j])

(a multi-secant, or type-I Anderson, estimate per row). The states depend on the corrections before them:
adding a vector to y_l moves x[j] by green[j, l] times it, so all c_j solve one block-triangular system

    c_j = P_j dX_j (x0[j] - xa[j]) + P_j sum_{l < j} green[j, l] (dX_j dY_l^T) c_l

with x0 the update without corrections and P_j = (dX_j dX_j^T + ridge)^-1. It has W * m unknowns and costs one
matrix product of the stored vectors. The corrected outputs then go through the same fused scan as any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parasample.plan.table import AffineTable
from parasample.plan.updates import UpdateRule

RIDGE = 1e-6  # relative to the trace of dX dX^T; keeps nearly parallel changes from cancelling


def green(table: AffineTable, rule: UpdateRule) -> Tensor:
    """Effect on x[j] of adding one to y[l], float64 [T + 1, T]; zero for l >= j."""
    steps = table.num_steps
    state = torch.tensor(rule.state, dtype=torch.float64)
    output = torch.tensor(rule.output, dtype=torch.float64)
    effect = torch.zeros(steps + 1, steps, dtype=torch.float64)
    for i in range(steps):
        reach = min(table.depth, i) + 1
        effect[i + 1] = state[i, :reach] @ effect[i - reach + 1 : i + 1].flip(0)
        effect[i + 1, i - reach + 1 : i + 1] += output[i, :reach].flip(0)
    return effect


@dataclass(frozen=True)
class Evaluations:
    """New outputs [n, D] at states [n, D] of the pairs (steps, samples), both int64 [n].

    `again` bool [n]: pairs that were evaluated before; the others have nothing to compare with.
    """

    steps: Tensor
    samples: Tensor
    states: Tensor
    outputs: Tensor
    again: Tensor


class SecantHistory:
    """The last `memory` changes of every (step, sample), [T, B, memory, D], and the outputs they correct."""

    def __init__(self, outputs: Tensor, memory: int, green: Tensor, slope: Tensor) -> None:
        self.memory = memory
        steps, batch, size = outputs.shape
        self._changes = outputs.new_zeros((steps, batch, memory, size))
        self._defects = torch.zeros_like(self._changes)
        self._counts = torch.zeros(steps, batch, dtype=torch.int64, device=outputs.device)
        self.ready: set[int] = set()  # samples with a step that was evaluated twice
        self._green = green.to(outputs)
        self._slope = slope
        self.corrected = torch.zeros_like(outputs)

    def learn(self, new: Evaluations, anchors: Tensor, outputs: Tensor) -> None:
        """Note how outputs changed since the last evaluation, kept in `anchors` and `outputs`."""
        steps, samples = new.steps, new.samples
        seen = new.again[:, None].to(anchors.dtype)
        change = (new.states - anchors[steps, samples]) * seen
        defect = (new.outputs - outputs[steps, samples]) * seen - self._slope[steps, None] * change
        slot = self._counts[steps, samples] % self.memory
        self._changes[steps, samples, slot] = change
        self._defects[steps, samples, slot] = defect
        self._counts[steps, samples] += new.again

    def forget(self, row: int) -> None:
        """Forget what was learned of steps from `row` on."""
        for kept in (self._changes, self._defects, self._counts):
            kept[row:] = 0
        self.ready.clear()

    def correct(
        self, states: Tensor, anchors: Tensor, outputs: Tensor, begins: list[int], holds: list[int]
    ) -> Tensor:
        """Outputs with corrections for rows begin..hold of each sample; `states` as updated without them."""
        for sample, (begin, hold) in enumerate(zip(begins, holds, strict=True)):
            if hold < begin:
                continue
            rows = slice(begin, hold + 1)
            if sample not in self.ready:
                self.corrected[rows, sample] = outputs[rows, sample]
                continue
            changes, defects = self._changes[rows, sample], self._defects[rows, sample]  # [W, m, D]
            move = states[rows, sample] - anchors[rows, sample]
            weights = self._solve(changes, defects, move, self._green[rows, rows])
            self.corrected[rows, sample] = outputs[rows, sample] + torch.einsum(
                "wm,wmd->wd", weights, defects
            )
        return self.corrected

    def _solve(self, changes: Tensor, defects: Tensor, move: Tensor, green: Tensor) -> Tensor:
        """All c_j, [W, m]."""
        window, memory, size = changes.shape
        gram = changes @ changes.transpose(1, 2)  # [W, m, m]
        ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(gram.dtype).tiny ** 0.5
        gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        inverse = torch.linalg.inv_ex(gram).inverse  # the ridge makes it regular; no check that would wait
        projected = inverse @ changes  # P dX, [W, m, D]
        right = (projected @ move[:, :, None]).reshape(-1)
        coupling = projected.reshape(-1, size) @ defects.reshape(-1, size).T  # [W m, W m]
        coupling = coupling.view(window, memory, window, memory) * green[:, None, :, None]
        system = coupling.reshape(window * memory, -1).neg_()
        system.diagonal().fill_(1.0)  # green[j, j] = 0: the system is lower triangular with unit diagonal
        solved = torch.linalg.solve_triangular(system, right[:, None], upper=False, unitriangular=True)
        return solved.view(window, memory)
