"""Exchange between CPU ranks of one host over shared memory: one copy a message, however many read it.

The rings, their counters and the sleeping are native (csrc/transport/segment.h, which states who may touch a
slot when); what waits, for how long, and why it ends is decided here.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parasample.errors import TransportError
from parasample.runtime.transports.exchange import (
    TIMEOUT_S,
    Channel,
    gather_text,
    require_same_channels,
    to_receive,
    to_send,
    together,
)

if TYPE_CHECKING:
    from parasample.runtime.transports import Ranks

try:
    from parasample.runtime.transports import _host

    _MISSING = None
except ImportError as _error:
    _MISSING = f"the native module is missing ({_error})"

POLL_S = 0.1  # between two looks at whether the other ranks live


def unavailable() -> str | None:
    """Why this process cannot exchange over shared memory; None where it can."""
    if sys.platform != "linux":
        return "needs Linux"
    if not os.access("/dev/shm", os.R_OK | os.W_OK):
        return "cannot write to /dev/shm; mount a tmpfs there"
    return _MISSING and f"{_MISSING}; reinstall with a C++ compiler, Python.h and --no-build-isolation"


def free_bytes() -> int:
    """Shared memory that is free on this host."""
    free = os.statvfs("/dev/shm")
    return free.f_bavail * free.f_frsize


@dataclass(frozen=True)
class _Ring:
    """This rank's end of one channel."""

    segment: _host.Segment
    index: int  # among the channels of that segment
    reader: int  # which of the channel's readers this rank is; -1: its sender
    slots: tuple[Tensor, ...]  # views of the segment's memory


def _end(segments: Sequence[_host.Segment], rank: int, state: _host.State, process: int) -> None:
    """Let the others see that `rank` has ended, and how, and wake those that wait. The first word counts.

    Only `process` has a say, not one that was forked from it.
    """
    if os.getpid() != process:
        return
    if segments and segments[rank].state == _host.State.OPEN:
        segments[rank].state = state
    for segment in segments:
        segment.wake()


class SharedMemoryExchange:
    """An Exchange between processes of one host; tensors lie on the CPU. `ranks` is used by `open` only."""

    def __init__(self, ranks: Ranks, timeout_s: float = TIMEOUT_S) -> None:
        self.rank, self.size, self.bytes_sent = ranks.rank, ranks.size, 0
        self._ranks, self._timeout_s, self._process = ranks, timeout_s, os.getpid()
        self._channels: tuple[Channel, ...] = ()
        self._segments: list[_host.Segment] = []  # of every rank
        self._at_end: weakref.finalize | None = None
        self._rings: dict[int, _Ring] = {}  # by channel: those of this rank

    def open(self, channels: Sequence[Channel]) -> None:
        channels = tuple(channels)
        require_same_channels(self._ranks, channels)
        segments = self._map_segments(channels)
        self.close()  # the channels of before, on which nobody waits any more
        self._segments = segments
        # An exchange that is dropped, or whose process ends in peace, is closed.
        self._at_end = weakref.finalize(self, _end, segments, self.rank, _host.State.CLOSED, self._process)
        self._channels = channels
        self._rings = {}
        counts = [0] * self.size
        for index, channel in enumerate(channels):
            place = counts[channel.source]
            counts[channel.source] += 1
            if self.rank == channel.source or self.rank in channel.readers:
                self._rings[index] = self._ring(channel, place)

    def send(self, channel: int, tensor: Tensor) -> None:
        sent = to_send(self._channels, channel, self.rank, tensor)
        ring = self._rings[channel]
        slot = self._wait(
            lambda wait_s: ring.segment.reserve(ring.index, wait_s), sent.readers, f"read {sent}"
        )
        ring.slots[slot].copy_(tensor.detach())
        ring.segment.publish(ring.index)
        self.bytes_sent += sent.message_bytes * len(sent.readers)

    def receive(self, channel: int) -> Tensor:
        wanted = to_receive(self._channels, channel, self.rank)
        ring = self._rings[channel]
        slot = self._wait(
            lambda wait_s: ring.segment.receive(ring.index, ring.reader, wait_s),
            (wanted.source,), f"send on {wanted}",
        )  # fmt: skip
        return ring.slots[slot]

    def flush(self) -> None:
        """Nothing to do: `send` has copied."""

    def abort(self) -> None:
        self._forget(_host.State.ABORTED)

    def close(self) -> None:
        self._forget(_host.State.CLOSED)

    def _forget(self, state: _host.State) -> None:
        _end(self._segments, self.rank, state, self._process)
        if self._at_end is not None:
            self._at_end.detach()
        self._channels, self._segments, self._rings = (), [], {}

    def _map_segments(self, channels: tuple[Channel, ...]) -> list[_host.Segment]:
        """Every rank's segment, by rank. Their names are gone when this returns or raises."""
        sizes: list[list[_host.ChannelSize]] = [[] for _ in range(self.size)]
        for c in channels:
            sizes[c.source].append(_host.ChannelSize(c.message_bytes, c.keep, c.slots, len(c.readers)))
        own = together(self._ranks, lambda: _host.Segment.create(self.rank, sizes[self.rank]))
        try:
            names = gather_text(self._ranks, own.name)
            return together(
                self._ranks,
                lambda: [
                    own if rank == self.rank else _host.Segment.map(name, rank, sizes[rank])
                    for rank, name in enumerate(names)
                ],
            )
        finally:
            own.unlink()

    @torch.inference_mode(False)  # or the slots could not be written to outside of it
    def _ring(self, channel: Channel, place: int) -> _Ring:
        segment = self._segments[channel.source]
        memory = torch.frombuffer(segment, dtype=torch.uint8)  # keeps the segment mapped
        slots = tuple(
            memory.narrow(0, segment.slot_offset(place, slot), channel.message_bytes)
            .view(channel.dtype)
            .view(channel.shape)
            for slot in range(channel.slots)
        )
        reader = -1 if self.rank == channel.source else channel.readers.index(self.rank)
        return _Ring(segment, place, reader, slots)

    def _wait(self, attempt: Callable[[float], int], peers: tuple[int, ...], doing: str) -> int:
        """The slot that `attempt` returns, called with the seconds to wait until it does so.

        A negative result -1 - i is no slot, but the place among `peers` of the rank that is waited for.
        """
        slot = attempt(0.0)
        began_at = time.monotonic()
        while slot < 0:
            peer, waited_s = peers[-1 - slot], time.monotonic() - began_at
            fault = self._fault(peer, waited_s)
            slot = attempt(0.0 if fault else POLL_S)  # once more: what a rank did before its end counts
            if slot < 0 and fault:
                raise TransportError(
                    f"rank {self.rank} of {self.size} waited {waited_s:.1f} s for rank {peer} to {doing}: "
                    f"{fault}"
                )
        return slot

    def _fault(self, peer: int, waited_s: float) -> str | None:
        """Why there is no use in waiting for `peer` any longer."""
        if not self._segments:
            return "this exchange was ended meanwhile"
        for rank, segment in enumerate(self._segments):
            if segment.state == _host.State.ABORTED:
                return f"rank {rank} gave up; look at its output"
        if self._segments[peer].state == _host.State.CLOSED:
            return "it has closed its exchange"
        if waited_s >= POLL_S:
            for rank, segment in enumerate(self._segments):
                if not segment.alive() and segment.state == _host.State.OPEN:
                    return f"the process of rank {rank} has ended; look at its output"
        return f"no answer in {self._timeout_s:g} s" if waited_s >= self._timeout_s else None
