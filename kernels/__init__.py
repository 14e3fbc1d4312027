"""Fused kernels, a folder per op; each op is one function that picks the fastest face available.

Nothing here imports the rest of parasample.
"""

from __future__ import annotations

from .dense_update import dense_update
from .dense_update import face_statuses as _dense_update_statuses
from .drift_aggregate import drift_aggregate
from .drift_aggregate import face_statuses as _drift_aggregate_statuses
from .gather_inputs import face_statuses as _gather_inputs_statuses
from .gather_inputs import gather_inputs
from .picard_update import face_statuses as _picard_update_statuses
from .picard_update import picard_update
from .status import FaceStatus

__all__ = ["FaceStatus", "dense_update", "drift_aggregate", "faces", "gather_inputs", "picard_update"]


def faces() -> list[FaceStatus]:
    """The status of every face of every op, for `parasample doctor`."""
    return [
        *_picard_update_statuses(),
        *_dense_update_statuses(),
        *_drift_aggregate_statuses(),
        *_gather_inputs_statuses(),
    ]
