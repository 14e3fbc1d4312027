"""Secant update: each step learns the Jacobian of its output from its own earlier evaluations.

For the row of step j, let dX be the changes between its last evaluations' states and dY the changes of its
outputs that the linear slope did not explain. The output at a new state x is taken as

    y_j(x) ~ y[j] + slope[j] (x - xa[j]) + dY c,   c = argmin |dX c - (x - xa[j])|^2 + ridge |c|^2

(a multi-secant, or type-I Anderson, estimate per row), inside the same scan as `picard_update`.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-6  # relative to the largest squared change kept; keeps parallel changes from cancelling


class SecantHistory:
    """The last `memory` changes of every (step, sample): rings of shape [memory, T, B, D]."""

    def __init__(self, outputs: Tensor, memory: int) -> None:
        self.memory = memory
        self.changes = outputs.new_zeros((memory, *outputs.shape))
        self.defects = torch.zeros_like(self.changes)
        self.counts = torch.zeros(outputs.shape[:2], dtype=torch.int64)

    def learn(
        self,
        steps: Tensor,
        samples: Tensor,
        states: Tensor,
        outputs: Tensor,
        old_states: Tensor,
        old_outputs: Tensor,
        slope: Tensor,
        known: list[int],
    ) -> None:
        """Take new evaluations `outputs` [n, D] at `states` [n, D]; rows above `known[sample]` had none before."""
        again = [n for n, (s, b) in enumerate(zip(steps.tolist(), samples.tolist(), strict=True)) if s <= known[b]]
        if not again:
            return
        pick = torch.tensor(again, device=steps.device)
        steps, samples = steps[pick], samples[pick]
        change = states[pick] - old_states[steps, samples]
        defect = outputs[pick] - old_outputs[steps, samples] - slope[steps, None] * change
        slot = self.counts[steps, samples] % self.memory
        self.changes[slot, steps, samples] = change
        self.defects[slot, steps, samples] = defect
        self.counts[steps, samples] += 1

    def update(
        self,
        states: Tensor,
        anchors: Tensor,
        outputs: Tensor,
        noise: Tensor | None,
        state_coef: Tensor,
        anchor_coef: Tensor,
        output_coef: Tensor,
        noise_coef: Tensor,
        x0_coef: Tensor,
        residual_scale: Tensor,
        begin: Tensor,
        hold: Tensor,
        end: Tensor,
    ) -> Tensor:
        """As `parasample.kernels.picard_update`, with the secant term added to the outputs of evaluated rows."""
        residual = states.new_full(states.shape[:2], torch.inf)
        depth = state_coef.shape[1]
        bounds = zip(begin.tolist(), hold.tolist(), end.tolist(), strict=True)
        a, c, o, s = (t.tolist() for t in (state_coef, anchor_coef, output_coef, noise_coef))
        u = x0_coef.tolist()
        for b, (first, held, last) in enumerate(bounds):
            held_x0 = None
            if held >= 0:
                held_x0 = u[held][0] * anchors[held, b] + u[held][1] * outputs[held, b]
            rows: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
            for i in range(max(first - depth + 1, 0), last):
                x = states[i, b]
                if i <= held:
                    xa, y = anchors[i, b], outputs[i, b]
                    kept = min(int(self.counts[i, b]), self.memory)
                    if kept:
                        y = y + self._correction(i, b, kept, x - xa)
                else:
                    held_value = held_x0 if held_x0 is not None else torch.zeros_like(x)
                    xa, y = x, (held_value - u[i][0] * x) / u[i][1]
                rows[i] = (x, xa, y)
                if i < first:
                    continue
                new = torch.zeros_like(x)
                for k in range(min(depth, i + 1)):
                    if i - k in rows:
                        xk, xak, yk = rows[i - k]
                        new += a[i][k] * xk + c[i][k] * xak + o[i][k] * yk
                if noise is not None and s[i] != 0:
                    new += s[i] * noise[i, b]
                residual[i + 1, b] = (new - anchors[i + 1, b]).square().sum() * residual_scale[i + 1]
                states[i + 1, b] = new
        return residual

    def _correction(self, step: int, sample: int, kept: int, move: Tensor) -> Tensor:
        changes = self.changes[:kept, step, sample]
        gram = changes @ changes.T
        ridge = RIDGE * gram.diagonal().max() + torch.finfo(gram.dtype).tiny
        gram = gram + ridge * torch.eye(kept, dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve(gram, changes @ move)
        return weights @ self.defects[:kept, step, sample]
