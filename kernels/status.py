"""What `parasample doctor` shows of each kernel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FaceStatus:
    """One implementation (face) of one op: can it run here, and why (not)."""

    op: str
    face: str
    available: bool
    reason: str
