"""Seconds that each leaf takes in plain forwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from parasample.bridge.trace.calls import Choice
from parasample.bridge.trace.hooks import watched

Key = tuple[str, int]  # a module's path and which of its calls in one forward


class _Clock:
    """Marks the begin and end of every leaf, on the host or on the device's stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begin: Any = None
        self.spans: dict[Key, tuple[Any, Any]] = {}

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def enter_leaf(self, name: str, call: int, arguments: Any) -> None:
        self._begin = self._now()

    def leave_leaf(self, name: str, call: int, output: Any) -> None:
        self.spans[name, call] = (self._begin, self._now())

    def leave_expanded(self, name: str, call: int, output: Any) -> None:
        pass

    def seconds(self) -> dict[Key, float]:
        if self._device.type != "cuda":
            return {key: end - begin for key, (begin, end) in self.spans.items()}
        torch.cuda.synchronize(self._device)
        return {key: begin.elapsed_time(end) / 1e3 for key, (begin, end) in self.spans.items()}  # from ms


def leaf_seconds(
    denoiser: nn.Module, choice: Choice, forward: Callable[[], Any], device: torch.device, repeats: int
) -> dict[Key, float]:
    """The least that each leaf took in `repeats` forwards, after one that is not counted."""
    best: dict[Key, float] = {}
    forward()
    for _ in range(repeats):
        clock = _Clock(device)
        with watched(denoiser, choice, clock):
            forward()
        for key, seconds in clock.seconds().items():
            best[key] = min(seconds, best.get(key, seconds))
    return best
