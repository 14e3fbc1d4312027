"""drift_aggregate: from a round's raw model outputs to what the scan reads, in one pass over memory.

Why it is not fused into `picard_update`: the scan reads states and outputs anyway, so that converting there
would save a writing and a reading of y. On one CPU core (AVX2, 32 and 64 states, float32 and bfloat16
outputs, buffers reused, both ways in one run) the two passes take 1.03 to 1.3 times as long as such a scan
at 2^16 elements, 1.33 to 1.52 times at 2^20. But the default update, "secant", needs y itself before the
scan, to learn from how it changed, and scans twice, over corrected outputs the second time: nothing would be
saved there, and converting is 1 to 4% of what its rounds take without their model. Of rounds that scan once
("gaussian") it is 11 to 14% at 2^16 elements and more from 2^18 on, where the system has to supply new
memory for y in every round; a scan would save a third to a half of it, but convert again what earlier rounds
evaluated. On a GPU the two passes move 24 bytes per element of float32 states and outputs, such a scan 12: a
prediction of at most twice the speed for rounds that scan once, not a measurement.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..choose import choose, statuses
from ..status import FaceStatus
from .check import check_arguments
from .coefficients import KINDS, conversion_row, in_coefficients, out_coefficients
from .reference import drift_aggregate_reference

__all__ = [
    "FACES",
    "KINDS",
    "conversion_row",
    "drift_aggregate",
    "face_statuses",
    "in_coefficients",
    "out_coefficients",
]

FACES = ("reference", "cpu", "cuda", "triton")


def drift_aggregate(
    conditional: Tensor,
    unconditional: Tensor | None = None,
    guidance: Tensor | None = None,
    rescale: Tensor | None = None,
    states: Tensor | None = None,
    conversion: Tensor | None = None,
    *,
    face: str = "auto",
) -> Tensor:
    """Guide, rescale and convert the model outputs of n states; return the results, [n, D].

    For each row j, accumulated in float32 (float64 where conditional or states are float64):

        m = m_u + guidance (m_c - m_u)                             without m_u: m = m_c
        m = rescale std(m_c) / std(m) m + (1 - rescale) m          where rescale is not 0
        D = p x + q m,  C = min(max(D, low), high)                 the data prediction, and clipped
        y = a x + b C + c (D - C)                                  without states: y = m

    The first line is classifier-free guidance (arXiv 2207.12598); the second is section 3.4 of arXiv
    2305.08891 with phi = rescale and std the unbiased deviation of the row (NaN for a single element).
    `conversion_row` gives the last two lines for every kind of model output; c is for schedulers that step
    along what clipping cuts off, too (DDIM), and where it is zero D - C is left out, infinite or not.

    Args:
        conditional: m_c, [n, D] any float dtype. Rows of every matrix may be strided, so that both halves of
            one [2n, D] model output are read where they are; a stride in D costs a copy.
        unconditional: m_u, [n, D] of conditional's dtype, or None: no guidance.
        guidance: [n], given with unconditional.
        rescale: phi, [n], or None; needs unconditional.
        states: x, [n, D] any float dtype, or None: no conversion.
        conversion: (p, q, a, b, c, low, high), [n, 7], given with states. Infinite bounds leave a row as it
            is; NaN in D stays NaN. low <= high, neither NaN: values are not checked.
        face: "auto", or one of "reference", "cpu", "cuda", "triton".

    guidance, rescale and conversion are contiguous, of the dtype accumulated in, and on the device of
    conditional, as is every argument.

    Returns:
        y: [n, D], contiguous, of the dtype accumulated in.

    On CUDA everything is enqueued on the current stream and nothing waits. Results are the same from run to
    run and for any number of threads. Nothing is mutated; there is no gradient.

    Raises:
        ValueError: an argument is not as above (expected, found, remedy).
        RuntimeError: the face asked for is not available here.
    """
    chosen = _choose(face, conditional.device.type)
    tensors: tuple[Any, ...] = (
        _unit_stride(conditional),
        _unit_stride(unconditional),
        guidance,
        rescale,
        _unit_stride(states),
        conversion,
    )
    if chosen in ("reference", "triton"):
        return _in_python(chosen, *tensors)
    try:
        return torch.ops.parasample.drift_aggregate.default(*tensors)
    except RuntimeError:
        # The native op reports bad arguments as RuntimeError; say it as every other face does. Costs nothing
        # when all is well.
        check_arguments(*tensors)
        raise


def _unit_stride(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.stride()[-1:] == (1,) else tensor.contiguous()


@torch.compiler.assume_constant_result  # torch.compile calls it, and does not look inside
def _choose(face: str, device: str) -> str:
    chosen = choose("drift_aggregate", FACES, face, device)
    if chosen in ("cpu", "cuda"):
        _register_fake()
    return chosen


def _in_python(face: str, *tensors: Any) -> Tensor:
    check_arguments(*tensors)
    if face == "triton":
        from .triton import drift_aggregate_triton

        return drift_aggregate_triton(*tensors)
    return drift_aggregate_reference(*tensors)


@functools.cache
def _register_fake() -> None:
    """Tell torch.compile and meta tensors what the native op returns."""

    @torch.library.register_fake("parasample::drift_aggregate")
    def fake(conditional: Tensor, *rest: Tensor | None) -> Tensor:
        states = rest[3]
        double = torch.float64 in (conditional.dtype, None if states is None else states.dtype)
        return conditional.new_empty(conditional.shape, dtype=torch.float64 if double else torch.float32)


def face_statuses() -> list[FaceStatus]:
    """Which faces of drift_aggregate can run here, and why (not)."""
    return statuses("drift_aggregate", FACES)
