"""drift_aggregate in Triton: the portable GPU face; interpreted on the CPU under TRITON_INTERPRET=1."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # elements of D a program owns


def drift_aggregate_triton(
    conditional: Tensor,
    unconditional: Tensor | None,
    guidance: Tensor | None,
    rescale: Tensor | None,
    states: Tensor | None,
    conversion: Tensor | None,
) -> Tensor:
    """See `drift_aggregate`: one kernel, after one that takes moments where rows are rescaled."""
    given = [tensor.dtype for tensor in (conditional, states) if tensor is not None]
    real = torch.float64 if torch.float64 in given else torch.float32
    n, num_elements = conditional.shape
    result = conditional.new_empty(n, num_elements, dtype=real)
    num_chunks = triton.cdiv(num_elements, BLOCK)
    if n == 0 or num_chunks == 0:
        return result
    # Absent arguments: any pointer serves, because the constants say that it is not read.
    u = conditional if unconditional is None else unconditional
    g = result if guidance is None else guidance
    phi = result if rescale is None else rescale
    moments = result
    constants = {"REAL": tl.float64 if real == torch.float64 else tl.float32, "BLOCK": BLOCK}
    if rescale is not None:
        moments = result.new_empty(n, num_chunks, 4)
        drift_moments_kernel[(n, num_chunks)](
            conditional, u, g, phi, moments, num_elements, conditional.stride(0), u.stride(0), **constants
        )
    x = conditional if states is None else states
    drift_convert_kernel[(n, num_chunks)](
        conditional,
        u,
        x,
        g,
        phi,
        result if conversion is None else conversion,
        moments,
        result,
        num_elements,
        conditional.stride(0),
        u.stride(0),
        x.stride(0),
        GUIDED=unconditional is not None,
        RESCALED=rescale is not None,
        CONVERTED=states is not None,
        CHUNKS=triton.next_power_of_2(num_chunks),
        **constants,
    )
    return result


@triton.jit
def drift_moments_kernel(
    conditional_ptr,
    unconditional_ptr,
    guidance_ptr,
    rescale_ptr,
    moments_ptr,
    num_elements,
    conditional_row: tl.int64,
    unconditional_row: tl.int64,
    REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mean and sum of squared deviations of m_c and of the guided m over one chunk of one row.

    Everything counts from the row's first element, and squares are taken around the chunk's own mean: an
    offset common to all elements costs no digits.
    """
    row = tl.program_id(0)
    chunk = tl.program_id(1)
    element = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = element < num_elements
    conditional_ptr += row * conditional_row
    unconditional_ptr += row * unconditional_row
    guidance = tl.load(guidance_ptr + row)
    c = tl.load(conditional_ptr + element, mask=inside, other=0.0).to(REAL)
    u = tl.load(unconditional_ptr + element, mask=inside, other=0.0).to(REAL)
    first_c = tl.load(conditional_ptr).to(REAL)
    first_u = tl.load(unconditional_ptr).to(REAL)
    m = u + guidance * (c - u) - (first_u + guidance * (first_c - first_u))
    c -= first_c
    size = tl.minimum(num_elements - chunk * BLOCK, BLOCK)
    mean_c = tl.sum(tl.where(inside, c, 0.0), 0) / size
    mean_m = tl.sum(tl.where(inside, m, 0.0), 0) / size
    c = tl.where(inside, c - mean_c, 0.0)
    m = tl.where(inside, m - mean_m, 0.0)
    at = moments_ptr + (row.to(tl.int64) * tl.num_programs(1) + chunk) * 4
    tl.store(at, mean_c)
    tl.store(at + 1, tl.sum(c * c, 0))
    tl.store(at + 2, mean_m)
    tl.store(at + 3, tl.sum(m * m, 0))


@triton.jit
def drift_convert_kernel(
    conditional_ptr,
    unconditional_ptr,
    states_ptr,
    guidance_ptr,
    rescale_ptr,
    conversion_ptr,
    moments_ptr,
    result_ptr,
    num_elements,
    conditional_row: tl.int64,
    unconditional_row: tl.int64,
    states_row: tl.int64,
    REAL: tl.constexpr,
    GUIDED: tl.constexpr,
    RESCALED: tl.constexpr,
    CONVERTED: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program writes one chunk of one row; CHUNKS is the number of chunks of a row, or more."""
    row = tl.program_id(0)
    chunk = tl.program_id(1)
    element = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = element < num_elements
    m = tl.load(conditional_ptr + row * conditional_row + element, mask=inside, other=0.0).to(REAL)
    if GUIDED:
        u = tl.load(unconditional_ptr + row * unconditional_row + element, mask=inside, other=0.0).to(REAL)
        m = u + tl.load(guidance_ptr + row) * (m - u)
    if RESCALED:
        k = tl.arange(0, CHUNKS)
        known = k < tl.num_programs(1)
        at = moments_ptr + (row.to(tl.int64) * tl.num_programs(1) + k) * 4
        size = tl.minimum(tl.maximum(num_elements - k * BLOCK, 0), BLOCK).to(REAL)
        mean_c = tl.load(at, mask=known, other=0.0)
        mean_m = tl.load(at + 2, mask=known, other=0.0)
        off_c = mean_c - tl.sum(size * mean_c, 0) / num_elements
        off_m = mean_m - tl.sum(size * mean_m, 0) / num_elements
        squares_c = tl.sum(tl.load(at + 1, mask=known, other=0.0) + size * off_c * off_c, 0)
        squares_m = tl.sum(tl.load(at + 3, mask=known, other=0.0) + size * off_m * off_m, 0)
        # as blocks: the interpreter cannot broadcast a comparison of float scalars
        phi = tl.full([BLOCK], 0, REAL) + tl.load(rescale_ptr + row)
        ratio = tl.sqrt(tl.full([BLOCK], 0, REAL) + squares_c / squares_m)
        m = tl.where(phi == 0, m, m * (phi * ratio + (1 - phi)))
    if CONVERTED:
        x = tl.load(states_ptr + row * states_row + element, mask=inside, other=0.0).to(REAL)
        at = conversion_ptr + 7 * row
        data = tl.load(at) * x + tl.load(at + 1) * m
        out_cut = tl.full([BLOCK], 0, REAL) + tl.load(at + 4)
        low = tl.full([BLOCK], 0, REAL) + tl.load(at + 5)
        high = tl.full([BLOCK], 0, REAL) + tl.load(at + 6)
        clipped = tl.where(data < low, low, data)  # comparisons with NaN are false: NaN stays
        clipped = tl.where(clipped > high, high, clipped)
        m = tl.load(at + 2) * x + tl.load(at + 3) * clipped
        m += tl.where(out_cut == 0, 0.0, out_cut * (data - clipped))
    tl.store(result_ptr + row.to(tl.int64) * num_elements + element, m, mask=inside)
