"""Several ranks emulated in one process: what is sent waits in a mailbox until its reader's turn comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from torch import Tensor

from parasample.errors import ConfigError, TransportError
from parasample.runtime.transports.exchange import Channel, require_possible, to_receive, to_send


class Mailboxes:
    """One Exchange for each of `size` ranks, which take turns in one thread: nothing can be waited for.

    `exchanges[rank]` behaves as the exchange of a process does, except that a message that is not there yet
    is an error at once, that a sender can be any number of messages ahead, and that messages stay valid for
    good.
    """

    def __init__(self, size: int) -> None:
        self.exchanges = tuple(LocalExchange(self, rank, size) for rank in range(size))
        self.channels: tuple[Channel, ...] = ()
        self.opened_by: set[int] = set()
        self.aborted_by: int | None = None
        self.letters: dict[tuple[int, int], deque[Tensor]] = {}  # by channel and reader

    def open(self, rank: int, channels: tuple[Channel, ...]) -> None:
        """`rank` opens `channels`; a rank that opens for the second time begins a new set of channels."""
        if rank in self.opened_by or not self.opened_by or self.aborted_by is not None:
            for channel in channels:
                require_possible(channel, len(self.exchanges))
            self.channels, self.opened_by, self.aborted_by = channels, set(), None
            self.letters = {
                (index, reader): deque()
                for index, channel in enumerate(channels)
                for reader in channel.readers
            }
        elif channels != self.channels:
            raise ConfigError(
                f"the channels of rank {rank} differ from those of rank {min(self.opened_by)}; derive them "
                "from the same plan on every rank"
            )
        self.opened_by.add(rank)


class LocalExchange:
    """The exchange of one emulated rank; made by Mailboxes."""

    def __init__(self, mailboxes: Mailboxes, rank: int, size: int) -> None:
        self.rank, self.size, self.bytes_sent = rank, size, 0
        self._mailboxes = mailboxes

    def open(self, channels: Sequence[Channel]) -> None:
        self._mailboxes.open(self.rank, tuple(channels))

    def send(self, channel: int, tensor: Tensor) -> None:
        sent = to_send(self._channels(), channel, self.rank, tensor)
        for reader in sent.readers:
            self._mailboxes.letters[channel, reader].append(tensor.detach().clone())
        self.bytes_sent += sent.message_bytes * len(sent.readers)

    def receive(self, channel: int) -> Tensor:
        wanted = to_receive(self._channels(), channel, self.rank)
        letters = self._mailboxes.letters[channel, self.rank]
        if not letters:
            raise TransportError(
                f"rank {self.rank} of {self.size} waits for rank {wanted.source} to send on {wanted}, which "
                "has not done so; let that rank take its turn first"
            )
        return letters.popleft()

    def flush(self) -> None:
        self._channels()

    def abort(self) -> None:
        self._mailboxes.aborted_by = self.rank

    def close(self) -> None:
        self._mailboxes.opened_by.discard(self.rank)

    def _channels(self) -> tuple[Channel, ...]:
        gone = self._mailboxes.aborted_by
        if gone is not None:
            raise TransportError(f"rank {self.rank} of {self.size} cannot go on: rank {gone} gave up")
        return self._mailboxes.channels if self.rank in self._mailboxes.opened_by else ()
