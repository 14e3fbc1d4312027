"""Point-to-point exchange between ranks: what every transport promises, and what every transport checks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from parasample.errors import ConfigError, TransportError

if TYPE_CHECKING:
    from parasample.runtime.transports import Ranks

TIMEOUT_S = 60.0  # of one wait for one message; a step of a big model on a slow rank stays below it
# How many messages a sender can be ahead of what a reader has received: one that waits, one being written.
# A sender that runs a step ahead then finds a free slot without a wait.
AHEAD = 2
TEXT_BYTES = 400  # of what ranks tell each other while they open channels: a name, or what went wrong
T = TypeVar("T")


@dataclass(frozen=True)
class Channel:
    """A stream of equally shaped messages from one rank to others.

    Args:
        name: for messages to people.
        source: the rank that sends.
        readers: the ranks that receive, in ascending order, without `source`.
        shape, dtype: of every message.
        keep: how many of the messages last received stay valid at each reader.
    """

    name: str
    source: int
    readers: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    keep: int = 1

    @property
    def message_bytes(self) -> int:
        """Bytes of one message."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def slots(self) -> int:
        """Messages a transport has room for: those kept and those on their way."""
        return self.keep + AHEAD

    def __str__(self) -> str:
        return f"channel {self.name!r}"


class Exchange(Protocol):
    """Sends and receives on channels that all ranks opened together.

    After an error no rank can go on with the same channels: the rank that fails calls `abort`, which ends the
    waits of all others.
    """

    rank: int
    size: int
    bytes_sent: int
    """Payload bytes that this rank has sent since it was made, times their readers."""

    def open(self, channels: Sequence[Channel]) -> None:
        """Replace the channels of before; every rank calls it with the same list. Unread messages are lost.

        Raises:
            ConfigError: on every rank, where the ranks' lists differ or a channel cannot work.
            TransportError: on every rank, where one could not make its channels.
        """
        ...

    def send(self, channel: int, tensor: Tensor) -> None:
        """Start sending the next message of `channels[channel]`.

        A contiguous tensor is read straight from where it lies, possibly after this call has returned: it
        must not change before `flush` has returned. Waits only where a reader is so far behind that no slot
        is free.

        Raises:
            ConfigError: the channel is not this rank's, or the tensor has another shape or dtype.
            TransportError: a reader has ended, gave up, or freed no slot in time.
        """
        ...

    def receive(self, channel: int) -> Tensor:
        """The next message of `channels[channel]`, in the order of sending; waits for it.

        Its memory belongs to the transport and may be shared with other readers: it must not be written to.
        It keeps its content until the `channels[channel].keep`-th further call for this channel begins, or
        the channels are replaced or closed.

        Raises:
            ConfigError: this rank does not read the channel.
            TransportError: the source has ended, gave up, or sent nothing in time.
        """
        ...

    def flush(self) -> None:
        """Return when everything sent has left the tensors it was sent from. Called once at a step's end.

        Raises:
            TransportError: a reader has ended or gave up.
        """
        ...

    def abort(self) -> None:
        """This rank has failed: end the waits of all ranks with a TransportError. Never raises."""
        ...

    def close(self) -> None:
        """End this rank's part without an error. What it sent can still be received. Never raises."""
        ...


def gather_text(ranks: Ranks, text: str) -> list[str]:
    """Every rank's `text`, by rank; cut to TEXT_BYTES. Collective."""
    told = text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")
    rows = ranks.all_gather(torch.frombuffer(bytearray(told), dtype=torch.uint8)[None])
    return [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows]


def together(ranks: Ranks, make: Callable[[], T]) -> T:
    """What `make` returns here; TransportError on every rank where it fails on one. Collective."""
    made, fault = [], ""
    try:
        made.append(make())
    except (OSError, RuntimeError) as error:
        fault = str(error) or type(error).__name__
    for rank, text in enumerate(gather_text(ranks, fault)):
        if text:
            raise TransportError(
                f"rank {rank} of {ranks.size} could not make its channels: {text}; free memory, enlarge "
                "/dev/shm or set PARASAMPLE_EXCHANGE=gloo"
            )
    return made[0]


def digest(text: str) -> Tensor:
    """A fingerprint of `text` that ranks can gather: uint8 [1, 32]."""
    return torch.tensor([list(hashlib.sha256(text.encode()).digest())], dtype=torch.uint8)


def require_same_channels(ranks: Ranks, channels: Sequence[Channel]) -> None:
    """Raise ConfigError on every rank unless all have the same channels and those can work. Collective."""
    digests = ranks.all_gather(digest(repr(tuple(channels))))
    differing = [rank for rank in range(ranks.size) if not torch.equal(digests[rank], digests[0])]
    if differing:
        raise ConfigError(
            f"the channels of rank {differing[0]} differ from those of rank 0 (this is rank {ranks.rank} of "
            f"{ranks.size}, which has {len(channels)}); derive them from the same plan on every rank"
        )
    for channel in channels:
        require_possible(channel, ranks.size)


def require_possible(channel: Channel, size: int) -> None:
    """Raise ConfigError unless the channel can work between `size` ranks."""
    possible, readers = set(range(size)), channel.readers
    if channel.source not in possible or not readers or not set(readers) <= possible - {channel.source}:
        raise ConfigError(
            f"{channel} goes from rank {channel.source} to ranks {readers}; expected a source and at least "
            f"one other reader among ranks 0 .. {size - 1}"
        )
    if list(readers) != sorted(set(readers)):
        raise ConfigError(f"{channel} has readers {readers}; name each once, in ascending order")
    if channel.keep < 1 or any(length < 0 for length in channel.shape):
        raise ConfigError(
            f"{channel} has shape {channel.shape} and keep={channel.keep}; expected lengths >= 0 and "
            "keep >= 1"
        )


def to_send(channels: Sequence[Channel], index: int, rank: int, tensor: Tensor) -> Channel:
    """The channel on which `rank` is about to send `tensor`, after a check that it fits."""
    channel = _channel(channels, index, rank)
    if channel.source != rank:
        raise ConfigError(f"rank {rank} cannot send on {channel}, which is rank {channel.source}'s")
    if tensor.shape != channel.shape or tensor.dtype != channel.dtype:
        raise ConfigError(
            f"{channel} carries {channel.dtype} {list(channel.shape)}, found {tensor.dtype} "
            f"{list(tensor.shape)}; open the channels anew where shapes change"
        )
    return channel


def to_receive(channels: Sequence[Channel], index: int, rank: int) -> Channel:
    """The channel on which `rank` is about to receive, after a check that it reads it."""
    channel = _channel(channels, index, rank)
    if rank not in channel.readers:
        raise ConfigError(f"rank {rank} does not read {channel}, whose readers are {channel.readers}")
    return channel


def _channel(channels: Sequence[Channel], index: int, rank: int) -> Channel:
    if not 0 <= index < len(channels):
        raise TransportError(
            f"rank {rank} has no channel {index}, it has {len(channels)} open; call open() first, and anew "
            "after close() or abort()"
        )
    return channels[index]
