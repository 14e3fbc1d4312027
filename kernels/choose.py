"""Which face of an op runs: the one asked for, or the fastest that is available."""

from __future__ import annotations

import functools

import torch

from . import native
from .status import FaceStatus
from .triton_support import triton_status

# For "auto": the faces of each device type, fastest first; the reference is always left.
_FASTEST = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}


def statuses(op: str, faces: tuple[str, ...]) -> list[FaceStatus]:
    """Which faces of an op can run here, and why (not)."""
    ops, cuda, triton = native.ops_library(), native.cuda_library(), triton_status()
    cuda_device = cuda.loaded and torch.cuda.is_available()
    cuda_reason = "loaded, but torch finds no CUDA device" if cuda.loaded and not cuda_device else cuda.reason
    known = {
        "reference": FaceStatus(op, "reference", True, "plain torch, any device"),
        "cpu": FaceStatus(op, "cpu", ops.loaded, ops.reason),
        "cuda": FaceStatus(op, "cuda", cuda_device, cuda_reason),
        "triton": FaceStatus(op, "triton", triton.available, triton.reason),
    }
    return [known[face] for face in faces]


@functools.cache
def choose(op: str, faces: tuple[str, ...], face: str, device: str) -> str:
    """The face to run on a device type; "auto" takes the first that is available.

    Raises:
        ValueError: no such face, or one that does not run on this device type.
        RuntimeError: the face is not available here.
    """
    available = {status.face: status for status in statuses(op, faces)}
    if face == "auto":
        candidates = [name for name in _FASTEST.get(device, ()) if name in faces]
        return next((name for name in candidates if available[name].available), "reference")
    if face not in faces:
        raise ValueError(f"{op}: face must be one of auto, {', '.join(faces)}, found {face!r}")
    if not available[face].available:
        raise RuntimeError(
            f"{op}: face {face!r} is not available: {available[face].reason}; pass face='auto'"
        )
    if face in ("cpu", "cuda") and face != device:
        raise ValueError(f"{op}: face {face!r} needs {face} tensors, found {device}; pass face='auto'")
    return face
