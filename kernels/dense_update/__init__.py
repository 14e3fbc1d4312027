"""dense_update: picard_update for histories of any length, up to dense lower-triangular rows."""

from __future__ import annotations

import functools
import sys

import torch
from torch import Tensor

from ..choose import choose, statuses
from ..picard_update.check import check_arguments
from ..status import FaceStatus
from .reference import dense_update_reference

__all__ = ["FACES", "dense_update", "face_statuses"]

FACES = ("reference", "cpu", "cuda")


def dense_update(
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
    *,
    face: str = "auto",
) -> Tensor:
    """Solve each sample's triangular recurrence over its range of steps, in place; return what moved.

    With rows of the coefficients that reach back to the first state,

        x[i+1] = sum_{j <= i} A[i,i-j] x[j] + C[i,i-j] xa[j] + B[i,i-j] m[j]  +  S[i] z[i]

    for i from begin[b] to end[b] - 1: a triangular product of coefficients [T, K] with rows of D elements.
    All arguments, the held data prediction of rows beyond hold, the residual returned and the errors are as
    of `picard_update`, which is faster for K up to 5; here K is any number, and there are no corrections.

    Args:
        face: "auto", or one of "reference", "cpu", "cuda".
    """
    chosen = _choose(face, states.device.type)
    tensors = (
        states,
        _unit_stride(anchors),
        _unit_stride(outputs),
        noise if noise is None else _unit_stride(noise),
        state_coef,
        anchor_coef,
        output_coef,
        noise_coef,
        x0_coef,
        residual_scale,
        begin,
        hold,
        end,
    )
    if chosen == "reference":
        check_arguments(*tensors, op="dense_update", max_history=sys.maxsize)
        return dense_update_reference(*tensors)
    try:
        return torch.ops.parasample.dense_update.default(*tensors)
    except RuntimeError:
        # The native op's RuntimeError becomes the ValueError of the other faces.
        check_arguments(*tensors, op="dense_update", max_history=sys.maxsize)
        raise


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride()[-1:] == (1,) else tensor.contiguous()


@torch.compiler.assume_constant_result  # torch.compile calls it, and does not look inside
def _choose(face: str, device: str) -> str:
    chosen = choose("dense_update", FACES, face, device)
    if chosen != "reference":
        _register_fake()
    return chosen


@functools.cache
def _register_fake() -> None:
    """Tell torch.compile and meta tensors what the native op returns."""

    @torch.library.register_fake("parasample::dense_update")
    def fake(states: Tensor, *rest: Tensor) -> Tensor:
        residual_scale = rest[8]
        return residual_scale.new_empty(states.shape[0], states.shape[1])


def face_statuses() -> list[FaceStatus]:
    """Which faces of dense_update can run here, and why (not)."""
    return statuses("dense_update", FACES)
