"""gather_inputs: from the trajectory to the model's next batch, in one pass over memory."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..choose import choose, statuses
from ..status import FaceStatus
from .check import check_arguments
from .reference import gather_inputs_reference

__all__ = ["FACES", "face_statuses", "gather_inputs"]

FACES = ("reference", "cpu", "cuda")


def gather_inputs(
    states: Tensor,
    steps: Tensor,
    samples: Tensor,
    scale: Tensor | None = None,
    copies: int = 1,
    dtype: torch.dtype | None = None,
    *,
    face: str = "auto",
) -> Tensor:
    """Gather, scale, cast and repeat the states that a round evaluates; return [copies n, D].

        y[c n + j] = scale[steps[j]] x[steps[j], samples[j]]        for c = 0 .. copies - 1

    computed in float32 (float64 for float64 states) and rounded once, to dtype.

    Args:
        states: x, [T+1, B, D] any float dtype. T and B may be strided; D must have unit stride.
        steps, samples: [n] int64, contiguous, on the device of states; 0 <= steps < T, 0 <= samples < B.
            Values on CUDA cannot be checked without stalling: they are clipped there.
        scale: [T] float32 (float64 for float64 states), contiguous, on the device of states: what the
            scheduler's scale_model_input multiplies by; None for 1.
        copies: blocks of the n rows that the result holds: 2 where guidance puts both halves in one batch.
        dtype: of the result, any float dtype; None for that of states.
        face: "auto", or one of "reference", "cpu", "cuda".

    On CUDA everything is enqueued on the current stream and nothing waits. Nothing is mutated; there is no
    gradient.

    Raises:
        ValueError: an argument is not as above (expected, found, remedy).
        RuntimeError: the face asked for is not available here.
    """
    chosen = _choose(face, states.device.type)
    arguments = (states, steps, samples, scale, copies, states.dtype if dtype is None else dtype)
    if chosen == "reference":
        check_arguments(*arguments)
        return gather_inputs_reference(*arguments)
    try:
        return torch.ops.parasample.gather_inputs.default(*arguments)
    except RuntimeError:
        # The native op's RuntimeError becomes the ValueError of the other faces.
        check_arguments(*arguments)
        raise


@torch.compiler.assume_constant_result  # torch.compile calls it, and does not look inside
def _choose(face: str, device: str) -> str:
    chosen = choose("gather_inputs", FACES, face, device)
    if chosen != "reference":
        _register_fake()
    return chosen


@functools.cache
def _register_fake() -> None:
    """Tell torch.compile and meta tensors what the native op returns."""

    @torch.library.register_fake("parasample::gather_inputs")
    def fake(
        states: Tensor, steps: Tensor, samples: Tensor, scale: Tensor | None, copies: int, dtype: torch.dtype
    ) -> Tensor:
        return states.new_empty(copies * steps.shape[0], states.shape[2], dtype=dtype)


def face_statuses() -> list[FaceStatus]:
    """Which faces of gather_inputs can run here, and why (not)."""
    return statuses("gather_inputs", FACES)
