"""Triangular Anderson acceleration over rounds (the idea of ParaTAA, arXiv 2402.09970, on our update).

With X the states a round evaluated and F = update(X) - X, the mixed states are

    update(X)[i] - sum_r theta[i, r] (dX_r + dF_r)[i]
    theta[i] = argmin |F - sum_r theta_r dF_r|^2 over rows <= i

where dX_r, dF_r are changes between consecutive rounds. Only rows up to i enter the fit of row i, because a
state depends on earlier states only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from parasample.runtime.picard import PicardSolver

RIDGE = 1e-6  # relative to the trace of each row's normal matrix


class Anderson:
    """The last `memory` + 1 rounds' states and residuals of every sample."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._past: dict[int, list[tuple[int, Tensor, Tensor]]] = {}

    def forget(self) -> None:
        """Forget all earlier rounds."""
        self._past.clear()

    def mix(self, solver: PicardSolver, begins: list[int], ends: list[int], residual: Tensor) -> Tensor:
        """Replace the updated states of evaluated rows by mixed ones; returns their residuals [T+1, B]."""
        for sample, (begin, hold) in enumerate(zip(begins, (p.hold for p in solver.progress), strict=True)):
            first, last = begin + 1, min(hold, ends[sample])  # rows first..last were evaluated this round
            if last < first:
                continue
            before = solver.anchors[first : last + 1, sample]
            after = solver.states[first : last + 1, sample]
            past = self._past.setdefault(sample, [])
            past.append((first, before.clone(), after - before))
            del past[: -self.memory - 1]
            common = [entry for entry in past if entry[0] + len(entry[1]) > last]
            if len(common) < 2:
                continue
            rows = slice(first, last + 1)
            weight = solver.recurrence.residual_scale[rows].sqrt()[:, None]
            xs = torch.stack([x[first - start : last + 1 - start] for start, x, _ in common])
            fs = torch.stack([f[first - start : last + 1 - start] for start, _, f in common])
            dx, df = xs.diff(dim=0), fs.diff(dim=0)  # [m, W, D]
            scaled = df * weight
            gram = torch.einsum("mwd,nwd->wmn", scaled, scaled).cumsum(0)
            right = torch.einsum("mwd,wd->wm", scaled, fs[-1] * weight).cumsum(0)
            trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
            eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
            theta = torch.linalg.solve(gram + (RIDGE * trace + torch.finfo(gram.dtype).tiny) * eye, right)
            theta[0] = 0  # the first row is exact: its input was final
            mixed = after - torch.einsum("wm,mwd->wd", theta, dx + df)
            solver.states[rows, sample] = mixed
            residual[rows, sample] = (mixed - before).square().sum(1) * solver.recurrence.residual_scale[rows]
        return residual
