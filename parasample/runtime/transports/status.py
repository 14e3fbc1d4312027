"""Which transports work in this process, and why others do not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from parasample.runtime.transports.shared_memory import free_bytes, unavailable


@dataclass(frozen=True)
class TransportStatus:
    """One transport: whether ranks could use it here, and the reason in words."""

    transport: str
    available: bool
    reason: str


def transport_statuses() -> list[TransportStatus]:
    """The status of every transport; starts nothing."""
    local = TransportStatus("local", True, "one process, nothing to exchange")
    if not dist.is_available():
        reason = "torch is built without torch.distributed"
        return [local, *(TransportStatus(name, False, reason) for name in ("shm", "gloo", "nccl"))]
    gloo = dist.is_gloo_available()
    reason = "CPU ranks, under torchrun" if gloo else "torch is built without Gloo"
    return [local, _shared_memory(), TransportStatus("gloo", gloo, reason), _nccl()]


def _shared_memory() -> TransportStatus:
    reason = unavailable()
    return TransportStatus(
        "shm", reason is None, reason or f"CPU ranks of this host, {free_bytes() >> 20} MiB free"
    )


def _nccl() -> TransportStatus:
    if not dist.is_nccl_available():
        return TransportStatus("nccl", False, f"torch {torch.__version__} is built without NCCL")
    if not torch.cuda.is_available():
        return TransportStatus("nccl", False, "torch finds no CUDA device")
    count = torch.cuda.device_count()
    version = ".".join(map(str, torch.cuda.nccl.version()))
    reason = f"NCCL {version}, {count} GPU{'s' * (count > 1)}, under torchrun"
    return TransportStatus("nccl", True, reason)
