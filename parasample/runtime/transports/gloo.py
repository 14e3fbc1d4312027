"""Exchange over torch.distributed's Gloo: the portable reference, which also spans several hosts."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parasample.errors import TransportError
from parasample.runtime.transports import TIMEOUT, TorchRanks
from parasample.runtime.transports.exchange import (
    TIMEOUT_S,
    Channel,
    require_same_channels,
    to_receive,
    to_send,
    together,
)

logger = logging.getLogger(__name__)


class GlooExchange:
    """An Exchange over a Gloo group of its own among `ranks`. CUDA tensors travel through host memory.

    NCCL is not used even where the ranks have it: it pairs a send with a receive by their order alone, and
    here messages are read in another order than they are sent in.

    Args:
        ranks: the ranks that exchange; all of them make their exchange at the same time.
        device: where received tensors lie.
        timeout_s: of one wait.
    """

    def __init__(
        self, ranks: TorchRanks, device: torch.device | str = "cpu", timeout_s: float = TIMEOUT_S
    ) -> None:
        self.rank, self.size, self.bytes_sent = ranks.rank, ranks.size, 0
        self._ranks, self._device, self._timeout_s = ranks, torch.device(device), timeout_s
        self._group = _connect(ranks)
        self._channels: tuple[Channel, ...] = ()
        self._inboxes: dict[int, _Inbox] = {}  # by channel
        self._outbox: list[_Sent] = []
        self._first_tag = 0

    def open(self, channels: Sequence[Channel]) -> None:
        channels = tuple(channels)
        require_same_channels(self._ranks, channels)
        if self._group is None:
            raise TransportError(f"rank {self.rank} has ended this exchange; make a new one")
        self.flush()
        # Tags are not used again: receives that the old channels posted ahead must match nothing.
        self._first_tag += len(self._channels)
        self._channels = channels
        self._inboxes = together(self._ranks, self._make_inboxes)

    def send(self, channel: int, tensor: Tensor) -> None:
        sent = to_send(self._channels, channel, self.rank, tensor)
        data = tensor.detach().cpu().contiguous()
        for reader in sent.readers:
            with self._awaiting(reader, f"read {sent}"):
                work = self._group.send([_bytes(data)], reader, self._first_tag + channel)
            self._outbox.append(_Sent(work, data, reader, sent))
        self.bytes_sent += sent.message_bytes * len(sent.readers)

    def receive(self, channel: int) -> Tensor:
        wanted = to_receive(self._channels, channel, self.rank)
        with self._awaiting(wanted.source, f"send on {wanted}"):
            message = self._inboxes[channel].next(self._timeout_s)
        return message.to(self._device)

    def flush(self) -> None:
        while self._outbox:
            sent = self._outbox[0]
            with self._awaiting(sent.reader, f"read {sent.channel}"):
                _finish(sent.work, self._timeout_s)
            del self._outbox[0]

    def abort(self) -> None:
        """The connections end with the group: whoever waits for this rank sees that at once."""
        self._channels, self._inboxes, self._outbox, self._group = (), {}, [], None

    def close(self) -> None:
        """Waits up to `timeout_s` for every rank to close: Gloo would lose what is on its way."""
        try:
            self.flush()
            if self._group is not None:
                _finish(self._group.barrier(), self._timeout_s)
        except RuntimeError as error:
            logger.warning("rank %d closed before every rank had: %s", self.rank, error)
        self.abort()

    def _make_inboxes(self) -> dict[int, _Inbox]:
        return {
            index: _Inbox(channel, self._group, self._first_tag + index)
            for index, channel in enumerate(self._channels)
            if self.rank in channel.readers
        }

    @contextmanager
    def _awaiting(self, peer: int, doing: str) -> Iterator[None]:
        """Raise Gloo's errors as TransportError."""
        began_at = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            waited_s = time.monotonic() - began_at
            reason = str(error)
        else:
            return
        # Outside of the handler: the traceback of Gloo's error would keep the connections from being closed.
        raise TransportError(
            f"rank {self.rank} of {self.size} waited {waited_s:.1f} s for rank {peer} to {doing}: {reason}"
        )


class _Inbox:
    """One channel at one of its readers: a ring of buffers, with receives posted ahead into the free ones."""

    def __init__(self, channel: Channel, group: Any, tag: int) -> None:
        self._channel, self._group, self._tag = channel, group, tag
        self._received = 0
        self._buffers = [torch.empty(channel.shape, dtype=channel.dtype) for _ in range(channel.slots)]
        self._works = [self._post(slot) for slot in range(channel.slots)]

    def next(self, timeout_s: float) -> Tensor:
        """The next message; the oldest that is kept gives way to the next receive."""
        oldest = self._received - self._channel.keep
        if oldest >= 0:
            self._works[oldest % self._channel.slots] = self._post(oldest % self._channel.slots)
        slot = self._received % self._channel.slots
        _finish(self._works[slot], timeout_s)
        self._received += 1
        return self._buffers[slot]

    def _post(self, slot: int) -> dist.Work:
        return self._group.recv([_bytes(self._buffers[slot])], self._channel.source, self._tag)


@dataclass(frozen=True)
class _Sent:
    """A message on its way to one reader."""

    work: dist.Work
    data: Tensor  # kept until it has been read
    reader: int
    channel: Channel


def _connect(ranks: TorchRanks) -> Any:  # torch's types leave out what a ProcessGroupGloo does
    """A Gloo group known to nobody else: its end closes its connections and no others. Collective."""
    drawn = ranks.all_gather(torch.frombuffer(bytearray(secrets.token_bytes(16)), dtype=torch.uint8)[None])
    name = bytes(drawn[0].tolist()).hex()  # a name used twice would lead to the addresses of an earlier group
    store = dist.PrefixStore(f"parasample/{name}", dist.distributed_c10d._get_default_store())
    return dist.ProcessGroupGloo(store, ranks.rank, ranks.size, TIMEOUT)


def _finish(work: dist.Work, timeout_s: float) -> None:
    work.wait(timeout=timedelta(seconds=timeout_s))


def _bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor as Gloo carries any dtype: uint8 [bytes]."""
    return tensor.reshape(-1).view(torch.uint8)
