"""Progress reported to the host while nobody waits: copies into pinned memory, each with an event."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

AHEAD = 1  # rounds that may run without the host having seen their numbers


class Notices:
    """Numbers that a device posts once per round and the host reads in order, `AHEAD` rounds later at most.

    On CUDA a notice is a copy into pinned memory and an event, both enqueued on the current stream. On a CPU
    a round has ended when its notice is posted, so that it can be read at once.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        pages = (torch.empty(shape, pin_memory=self._cuda) for _ in range(AHEAD + 1))
        events = (torch.cuda.Event() if self._cuda else None for _ in range(AHEAD + 1))
        self._free: deque[tuple[Tensor, Any]] = deque(zip(pages, events, strict=True))
        self._posted: deque[tuple[Tensor, Any]] = deque()

    def post(self, numbers: Tensor) -> None:
        """Start copying `numbers`, float32 of the shape given; a page is free if `arrived` was emptied."""
        page, event = self._free.popleft()
        page.copy_(numbers, non_blocking=True)
        if event is not None:
            event.record()
        self._posted.append((page, event))

    def arrived(self) -> list[list[list[float]]]:
        """Notices not read before, oldest first; waits until at most `AHEAD` are left."""
        found = []
        while self._posted:
            page, event = self._posted[0]
            if not self._ready(event):
                if len(self._posted) <= AHEAD:
                    break
                event.synchronize()  # a round that ended, or is about to: the device has the next one to do
            found.append(page.tolist())
            self._free.append(self._posted.popleft())
        return found

    def _ready(self, event: Any) -> bool:
        return event is None or event.query()
