"""picard_update in plain torch: the truth that every fast version is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def picard_update_reference(
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
    weights: Tensor | None = None,
    directions: Tensor | None = None,
) -> Tensor:
    """Run the affine recurrence over each sample's range of steps; see `picard_update` for the arguments."""
    real = torch.float64 if states.dtype == torch.float64 else torch.float32
    num_rows, num_samples, _ = states.shape
    residual = torch.full((num_rows, num_samples), float("inf"), dtype=real, device=states.device)
    tables = [table.tolist() for table in (state_coef, anchor_coef, output_coef, noise_coef, x0_coef)]
    for b, (first, hold_row, last) in enumerate(
        zip(begin.tolist(), hold.tolist(), end.tolist(), strict=True)
    ):
        if last <= first:
            continue
        old = anchors[:, b].to(real, copy=True)  # [T+1, D]; a copy, because it may be the memory of states
        rows = _scan(
            states[:, b].to(real),
            old,
            _corrected(outputs[:, b], weights, directions, b, real),
            None if noise is None else noise[:, b].to(real),
            tables,
            (first, hold_row, last),
        )
        states[first + 1 : last + 1, b] = torch.stack(rows).to(states.dtype)
        for row in range(first + 1, last + 1):
            change = states[row, b].to(real) - old[row]
            residual[row, b] = residual_scale[row] * change.square().sum()
    return residual


def _corrected(
    outputs: Tensor,  # [T, D]
    weights: Tensor | None,  # [T, B, R]
    directions: Tensor | None,  # [T, B, R, D]
    b: int,
    real: torch.dtype,
) -> Tensor:
    """The model outputs of sample b plus its weighted directions; one of weight zero is not read."""
    m = outputs.to(real, copy=True)
    if weights is not None and directions is not None:
        for i, r in weights[:, b].nonzero().tolist():
            m[i] += weights[i, b, r] * directions[i, b, r].to(real)
    return m


def _scan(
    x: Tensor,  # [T+1, D] as stored
    xa: Tensor,  # [T+1, D]
    m: Tensor,  # [T, D], corrected
    z: Tensor | None,  # [T, D]
    tables: list,
    steps: tuple[int, int, int],
) -> list[Tensor]:
    """New states of rows first + 1 .. last of one sample, not yet rounded to the storage dtype.

    With A, C, B, S the state, anchor, output and noise coefficients:

        x[i+1] = sum_k A[i,k] x[i-k] + C[i,k] xa[i-k] + B[i,k] m[i-k]  +  S[i] z[i]

    Terms with i - k < 0 or a zero coefficient are left out. Rows i > hold were never evaluated: there
    xa[i] := x[i], and m[i] := (D - u_i x[i]) / w_i keeps the data prediction D = u_l xa[l] + w_l m[l] of the
    last evaluated row l = hold (D = 0 for l = -1), with (u, w) the columns of x0_coef.
    """
    state_coef, anchor_coef, output_coef, noise_coef, x0_coef = tables
    first, hold, last = steps
    new: dict[int, Tensor] = {}
    held_x0 = torch.zeros_like(x[0])
    if 0 <= hold < last:
        held_x0 = x0_coef[hold][0] * xa[hold] + x0_coef[hold][1] * m[hold]

    def state(row: int) -> Tensor:
        return new[row] if row > first else x[row]

    def anchor(row: int) -> Tensor:
        return state(row) if row > hold else xa[row]

    def output(row: int) -> Tensor:
        u, w = x0_coef[row]
        return (held_x0 - u * state(row)) / w if row > hold else m[row]

    for i in range(first, last):
        total = torch.zeros_like(x[0])
        for k in range(min(len(state_coef[i]), i + 1)):
            if state_coef[i][k] != 0:
                total += state_coef[i][k] * state(i - k)
            if anchor_coef[i][k] != 0:
                total += anchor_coef[i][k] * anchor(i - k)
            if output_coef[i][k] != 0:
                total += output_coef[i][k] * output(i - k)
        if z is not None and noise_coef[i] != 0:
            total += noise_coef[i] * z[i]
        new[i + 1] = total
    return list(new.values())
