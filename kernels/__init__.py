"""Fused kernels, a folder per op; each op is one function that picks the fastest face available.

Nothing here imports the rest of parasample.
"""

from __future__ import annotations

from .picard_update import face_statuses as _picard_update_statuses
from .picard_update import picard_update
from .status import FaceStatus

__all__ = ["FaceStatus", "faces", "picard_update"]


def faces() -> list[FaceStatus]:
    """The status of every face of every op, for `parasample doctor`."""
    return [*_picard_update_statuses()]
