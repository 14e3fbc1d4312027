"""picard_update: solve a window of the affine sampling recurrence in one pass and measure what moved."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import native
from ..status import FaceStatus
from .check import MAX_HISTORY, check_arguments
from .reference import picard_update_reference

__all__ = ["FACES", "face_statuses", "picard_update"]

FACES = ("reference", "cpu", "cuda", "triton")
Face = Callable[..., Tensor]


def picard_update(
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
    *,
    face: str = "auto",
) -> Tensor:
    """Solve each sample's recurrence over its range of steps, in place; return how far every state moved.

    With A, C, B, S the state, anchor, output and noise coefficients, for i from begin[b] to end[b] - 1,
    accumulated in float32 (float64 for float64 states) and rounded only when stored:

        x[i+1] = sum_k A[i,k] x[i-k] + C[i,k] xa[i-k] + B[i,k] m[i-k]  +  S[i] z[i]

    Terms with i - k < 0 or a zero coefficient are left out. Rows i > hold[b] were never evaluated: their
    outputs and anchors are not used; xa[i] := x[i] and m[i] := (D - u_i x[i]) / w_i keep the data prediction
    D = u_l xa[l] + w_l m[l] of row l = hold[b] (D = 0 for l = -1), with (u, w) = x0_coef.
    Every m[i] of an evaluated row is the model output plus sum_r weights[i,b,r] directions[i,b,r], a low-rank
    correction of its linearisation.
    ParaDiGMS as published (arXiv 2305.16317) freezes the drift: A = 1, C = a_i - 1, B = b_i.

    Args:
        states: x, [T+1, B, D] float32, bfloat16, float16 or float64; row i is the state before step i.
            MUTATED in rows begin[b]+1 .. end[b]. T and B may be strided; D must have unit stride.
        anchors: xa, [T+1, B, D] of states' dtype: the states at which outputs were evaluated. May be `states`
            itself (or another view of exactly that memory), but must not overlap it in any other way.
        outputs: model outputs, [T, B, D] any float dtype; must not overlap states.
        noise: z, [T, B, D] any float dtype, or None where noise_coef is zero; must not overlap states. Rows
            with a zero coefficient are not read.
        state_coef, anchor_coef, output_coef: [T, K]; column k belongs to row i - k. K = 1 .. 5 in the fused
            faces; "auto" gives longer histories (PNDM with its Runge-Kutta start) to `dense_update`.
        noise_coef: [T]. x0_coef: [T, 2]. residual_scale: [T+1]. All coefficients are float32 (float64 for
            float64 states), contiguous, on the device of states.
        begin, hold, end: [B] int64 on the device of states; 0 <= begin, end <= T, hold >= begin - 1. A sample
            with end <= begin is left alone. Values on CUDA cannot be checked without stalling: begin and end
            are clipped to 0 .. T there, hold to begin - 1, and noise None counts as zero noise.
        weights: [T, B, R] of the coefficients' dtype, contiguous, R = 1 .. 8; None for no corrections.
        directions: [T, B, R, D] any float dtype, T, B and R may be strided; must not overlap states. Given
            exactly when weights are. One whose weight is zero is not read.
        face: "auto", or one of "reference", "cpu", "cuda", "triton".

    Returns:
        residual: [T+1, B] float32 (float64): residual_scale[i+1] * sum_d (x[i+1] - xa[i+1])^2, x as stored
        and xa as it was; +inf for rows outside begin+1 .. end; never finite where the new state is not.

    On CUDA everything is enqueued on the current stream and nothing waits. Results are the same from run to
    run and for any number of threads.

    Raises:
        ValueError: an argument is not as above (expected, found, remedy); nothing has been written then.
        RuntimeError: the face asked for is not available here.
    """
    if face == "auto" and state_coef.shape[-1] > MAX_HISTORY:
        from ..dense_update import dense_update  # which imports this package's checks

        corrected = _corrected(outputs, weights, directions, state_coef.dtype)
        rest = (x0_coef, residual_scale, begin, hold, end)
        coefficients = (state_coef, anchor_coef, output_coef, noise_coef)
        return dense_update(states, anchors, corrected, noise, *coefficients, *rest)
    run = _function(_choose(face, states.device.type))
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
        weights,
        directions if directions is None else _unit_stride(directions),
    )
    try:
        return run(*tensors)
    except RuntimeError:
        # The native op reports bad arguments as RuntimeError; say it as every other face does. Costs nothing
        # when all is well.
        check_arguments(*tensors)
        raise


def _corrected(
    outputs: Tensor, weights: Tensor | None, directions: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The outputs plus their weighted directions; one of weight zero does not count, whatever it holds."""
    if weights is None or directions is None:
        return outputs
    used = directions.to(dtype).masked_fill((weights == 0)[..., None], 0)
    return outputs.to(dtype) + (weights[..., None, :] @ used)[..., 0, :]


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride()[-1:] == (1,) else tensor.contiguous()


def _choose(face: str, device: str) -> str:
    return _cached_choice(face, device)


# torch.compile calls it instead of tracing it. torch.compiler.assume_constant_result sets the same mark, but
# imports the whole compiler, which takes seconds.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _cached_choice(face: str, device: str) -> str:
    """The face to run on a device type, ready to run; "auto" takes the first that is available."""
    statuses = {status.face: status for status in face_statuses()}
    if face == "auto":
        candidates = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device, ())
        face = next((name for name in candidates if statuses[name].available), "reference")
    if face not in FACES:
        raise ValueError(f"picard_update: face must be one of auto, {', '.join(FACES)}, found {face!r}")
    if not statuses[face].available:
        raise RuntimeError(
            f"picard_update: face {face!r} is not available: {statuses[face].reason}; pass face='auto'"
        )
    if face in ("cpu", "cuda"):
        if face != device:
            raise ValueError(
                f"picard_update: face {face!r} needs {face} tensors, found {device}; pass face='auto'"
            )
        _register_fake()
    return face


def _function(face: str) -> Face:
    if face in ("cpu", "cuda"):
        return torch.ops.parasample.picard_update.default
    if face == "triton":
        from .triton import picard_update_triton

        return _checked(picard_update_triton)
    return _checked(picard_update_reference, sys.maxsize)


def _checked(run: Face, max_history: int = MAX_HISTORY) -> Face:
    def checked(*arguments: Any) -> Tensor:
        check_arguments(*arguments, max_history=max_history)
        return run(*arguments)

    return checked


@functools.cache
def _register_fake() -> None:
    """Tell torch.compile and meta tensors what the native op returns."""

    @torch.library.register_fake("parasample::picard_update")
    def fake(states: Tensor, *rest: Tensor) -> Tensor:
        residual_scale = rest[8]
        return residual_scale.new_empty(states.shape[0], states.shape[1])


def face_statuses() -> list[FaceStatus]:
    """Which faces of picard_update can run here, and why (not)."""
    from ..triton_support import triton_status

    ops, cuda = native.ops_library(), native.cuda_library()
    cuda_device = cuda.loaded and torch.cuda.is_available()
    cuda_reason = "loaded, but torch finds no CUDA device" if cuda.loaded and not cuda_device else cuda.reason
    triton = triton_status()
    return [
        FaceStatus("picard_update", "reference", True, "plain torch, any device"),
        FaceStatus("picard_update", "cpu", ops.loaded, ops.reason),
        FaceStatus("picard_update", "cuda", cuda_device, cuda_reason),
        FaceStatus("picard_update", "triton", triton.available, triton.reason),
    ]
