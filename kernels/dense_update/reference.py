"""dense_update in plain torch, one triangular system per sample: what fast versions are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_update_reference(
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
    """Solve (1 - A) x = C xa + B m + S z for the rows of each sample's range; see `dense_update`.

    In float64: the inverse of a system of many steps magnifies rounding that a recurrence does not make.
    """
    real = torch.float64 if states.dtype == torch.float64 else torch.float32
    residual = residual_scale.new_full(states.shape[:2], float("inf"))
    A, C, B = (_triangle(table.double()) for table in (state_coef, anchor_coef, output_coef))  # [T, T]
    u, w = x0_coef.double().unbind(1)
    for b, (first, held, last) in enumerate(zip(begin.tolist(), hold.tolist(), end.tolist(), strict=True)):
        if last <= first:
            continue
        x, xa, m = (t[:last, b].double() for t in (states, anchors, outputs))
        old = anchors[first + 1 : last + 1, b].to(real, copy=True)
        # Rows beyond hold: xa = x and m = (D - u x) / w.
        evaluated = torch.arange(last, device=x.device) <= held
        rows = slice(first, last)
        implied = torch.where(evaluated, 0.0, B[rows, :last] / w[:last])
        state = A[rows, :last] + torch.where(evaluated, 0.0, C[rows, :last]) - implied * u[:last]
        right = _product(torch.where(evaluated, C[rows, :last], 0.0), xa)
        right += _product(torch.where(evaluated, B[rows, :last], 0.0), m)
        if 0 <= held < last:
            right += implied.sum(1)[:, None] * (u[held] * xa[held] + w[held] * m[held])
        if noise is not None:
            right += _product(torch.diag(noise_coef[rows].double()), noise[rows, b].double())
        right += _product(state[:, : first + 1], x[: first + 1])
        system = torch.eye(last - first, dtype=torch.float64, device=x.device)
        system[:, :-1] -= state[:, first + 1 :]
        solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        states[first + 1 : last + 1, b] = solved.to(states.dtype)
        change = states[first + 1 : last + 1, b].to(real) - old
        residual[first + 1 : last + 1, b] = residual_scale[first + 1 : last + 1] * change.square().sum(1)
    return residual


def _triangle(table: Tensor) -> Tensor:
    """Coefficients by lag, [T, K], as rows of columns, [T, T]: entry (i, i - k) is table[i, k]."""
    steps, history = table.shape
    dense = table.new_zeros(steps, steps)
    for k in range(min(steps, history)):
        dense.diagonal(-k).copy_(table[k:, k])
    return dense


def _product(coefficients: Tensor, rows: Tensor) -> Tensor:
    """Coefficients [n, m] times rows [m, D]; rows that no coefficient uses may hold anything."""
    used = (coefficients != 0).any(0)
    return coefficients[:, used] @ rows[used]
