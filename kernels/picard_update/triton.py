"""picard_update in Triton: the portable GPU face; interpreted on the CPU under TRITON_INTERPRET=1."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # elements of D a program owns; the history of five rows still fits its registers


def picard_update_triton(
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
    """See `picard_update`: one kernel scans, then partial residuals are added up in a fixed order."""
    rows, num_samples, num_elements = states.shape
    num_blocks = triton.cdiv(num_elements, BLOCK)
    if num_samples == 0 or num_blocks == 0:
        return torch.full_like(residual_scale[:, None].expand(rows, num_samples), float("inf"))
    # A row's partial sums; rows outside a sample's range stay at +inf and so does their sum.
    partial = residual_scale.new_full((rows, num_samples, num_blocks), float("inf"))
    # Absent arguments need some pointer, which is then not read.
    z = outputs if noise is None else noise
    d = outputs[:, :, None] if directions is None else directions
    picard_update_kernel[(num_blocks, num_samples)](
        states,
        anchors,
        outputs,
        z,
        d,
        state_coef,
        anchor_coef,
        output_coef,
        noise_coef,
        x0_coef,
        x0_coef if weights is None else weights,
        begin,
        hold,
        end,
        partial,
        rows - 1,
        num_samples,
        num_elements,
        *states.stride()[:2],
        *anchors.stride()[:2],
        *outputs.stride()[:2],
        *z.stride()[:2],
        *d.stride()[:3],
        REAL=tl.float64 if states.dtype == torch.float64 else tl.float32,
        K=state_coef.shape[1],
        HAS_NOISE=noise is not None,
        RANK=0 if weights is None else weights.shape[2],
        BLOCK=BLOCK,
    )
    scale = residual_scale[:, None]
    total = partial.sum(-1) * scale
    return torch.where(torch.isposinf(partial[:, :, 0]) & (scale <= 0), float("inf"), total)


@triton.jit
def read_output(
    outputs_ptr,  # of the sample's elements, as directions_ptr; weights_ptr of the sample
    directions_ptr,
    weights_ptr,
    row,
    outputs_row,
    directions_row,
    directions_rank,
    weights_row,
    wanted,  # whether this row is read at all
    inside,
    REAL: tl.constexpr,
    RANK: tl.constexpr,
):
    """The model output of a row plus its weighted directions; zero where not wanted."""
    here = inside & wanted
    output = tl.load(outputs_ptr + row * outputs_row, mask=here, other=0.0).to(REAL)
    for r in tl.static_range(RANK):
        weight = tl.load(weights_ptr + row * weights_row + r, mask=wanted, other=0.0)
        # compared as a block: the interpreter cannot broadcast a comparison of float scalars
        used = here & (tl.zeros_like(output) + weight != 0)
        at = directions_ptr + row * directions_row + r * directions_rank
        output += weight * tl.load(at, mask=used, other=0.0).to(REAL)
    return output


@triton.jit
def picard_update_kernel(
    states_ptr,
    anchors_ptr,
    outputs_ptr,
    noise_ptr,
    directions_ptr,
    state_coef_ptr,
    anchor_coef_ptr,
    output_coef_ptr,
    noise_coef_ptr,
    x0_coef_ptr,
    weights_ptr,
    begin_ptr,
    hold_ptr,
    end_ptr,
    partial_ptr,
    num_steps,
    num_samples,
    num_elements,
    states_row: tl.int64,
    states_sample: tl.int64,
    anchors_row: tl.int64,
    anchors_sample: tl.int64,
    outputs_row: tl.int64,
    outputs_sample: tl.int64,
    noise_row: tl.int64,
    noise_sample: tl.int64,
    directions_row: tl.int64,
    directions_sample: tl.int64,
    directions_rank: tl.int64,
    REAL: tl.constexpr,
    K: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program scans BLOCK elements of one sample; x, c and m below hold rows i, i-1, .. i-K+1."""
    block = tl.program_id(0)
    sample = tl.program_id(1)
    element = block * BLOCK + tl.arange(0, BLOCK)
    inside = element < num_elements
    states_ptr += sample * states_sample + element
    anchors_ptr += sample * anchors_sample + element
    outputs_ptr += sample * outputs_sample + element
    noise_ptr += sample * noise_sample + element
    directions_ptr += sample * directions_sample + element
    weights_ptr += sample * RANK
    weights_row = num_samples * RANK
    # Clipped, because values on a device cannot be checked without waiting for it.
    begin = tl.maximum(tl.load(begin_ptr + sample), 0)
    end = tl.minimum(tl.load(end_ptr + sample), num_steps)
    hold = tl.maximum(tl.load(hold_ptr + sample), begin - 1)
    busy = begin < end

    x = ()
    xa = ()
    m = ()
    for k in tl.static_range(K):
        row = begin - k
        here = inside & (row >= 0) & busy
        value = tl.load(states_ptr + row * states_row, mask=here, other=0.0).to(REAL)
        anchor = tl.load(anchors_ptr + row * anchors_row, mask=here & (row <= hold), other=0.0).to(REAL)
        output = read_output(
            outputs_ptr,
            directions_ptr,
            weights_ptr,
            row,
            outputs_row,
            directions_row,
            directions_rank,
            weights_row,
            (k > 0) & (row >= 0) & busy,
            inside,
            REAL,
            RANK,
        )
        x = x + (value,)
        xa = xa + (tl.where(row <= hold, anchor, value),)
        m = m + (output,)

    # The data prediction of the last evaluated row, if that lies before the range.
    before = busy & (hold >= 0) & (hold < begin)
    u = tl.load(x0_coef_ptr + 2 * hold, mask=before, other=0.0)
    w = tl.load(x0_coef_ptr + 2 * hold + 1, mask=before, other=0.0)
    anchor = tl.load(anchors_ptr + hold * anchors_row, mask=inside & before, other=0.0).to(REAL)
    output = read_output(
        outputs_ptr,
        directions_ptr,
        weights_ptr,
        hold,
        outputs_row,
        directions_row,
        directions_rank,
        weights_row,
        before,
        inside,
        REAL,
        RANK,
    )
    held_x0 = u * anchor + w * output

    for i in range(begin, end):
        old = tl.load(anchors_ptr + (i + 1) * anchors_row, mask=inside, other=0.0).to(REAL)
        output = read_output(
            outputs_ptr,
            directions_ptr,
            weights_ptr,
            i,
            outputs_row,
            directions_row,
            directions_rank,
            weights_row,
            i <= hold,
            inside,
            REAL,
            RANK,
        )
        u = tl.load(x0_coef_ptr + 2 * i)
        w = tl.load(x0_coef_ptr + 2 * i + 1)
        output = tl.where(i <= hold, output, (held_x0 - u * x[0]) / w)
        held_x0 = tl.where(i == hold, u * xa[0] + w * output, held_x0)
        m = (output,) + m[1:]

        total = tl.zeros([BLOCK], REAL)
        for k in tl.static_range(K):
            a = tl.load(state_coef_ptr + i * K + k)
            c = tl.load(anchor_coef_ptr + i * K + k)
            b = tl.load(output_coef_ptr + i * K + k)
            known = i >= k
            total += tl.where(known & (a != 0), a * x[k], 0.0)
            total += tl.where(known & (c != 0), c * xa[k], 0.0)
            total += tl.where(known & (b != 0), b * m[k], 0.0)
        if HAS_NOISE:
            s = tl.load(noise_coef_ptr + i)
            noisy = tl.full([BLOCK], 0, REAL) + s != 0  # as a block, see read_output
            z = tl.load(noise_ptr + i * noise_row, mask=inside & noisy, other=0.0).to(REAL)
            total += s * z

        stored = total.to(states_ptr.dtype.element_ty)
        # Old rows are read at most one row ahead, so that anchors may be the memory of states.
        tl.store(states_ptr + (i + 1) * states_row, stored, mask=inside)
        change = tl.where(inside, stored.to(REAL) - old, 0.0)
        squared = tl.sum(change * change, 0)
        at = ((i + 1) * num_samples + sample) * tl.num_programs(0) + block
        tl.store(partial_ptr + at, squared)

        x = (total,) + x[: K - 1]
        xa = (tl.where(i + 1 <= hold, old, total),) + xa[: K - 1]
        m = (output,) + m[: K - 1]
