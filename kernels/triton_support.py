"""Can Triton kernels run here: on a CUDA device, or interpreted on the CPU."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TritonStatus:
    available: bool
    reason: str


def triton_status() -> TritonStatus:
    if importlib.util.find_spec("triton") is None:
        return TritonStatus(False, "triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return TritonStatus(True, "interpreted (TRITON_INTERPRET=1)")
    if not torch.cuda.is_available():
        return TritonStatus(
            False, "torch finds no CUDA device (TRITON_INTERPRET=1 runs it slowly on the CPU)"
        )
    return TritonStatus(True, "compiles at first use")
