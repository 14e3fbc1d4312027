"""Several workers of one process behind one exchange: what they send each other never leaves it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from parasample.errors import TransportError
from parasample.runtime.transports.exchange import Channel, Exchange, to_receive, to_send


class Router:
    """Gives each worker of this rank an exchange of its own.

    A message to several workers of another rank travels there once. One to a worker of this rank is copied,
    so that it keeps its content whatever becomes of the tensor.

    Args:
        exchange: of this rank.
        rank_of: [workers] where each of them works.
    """

    def __init__(self, exchange: Exchange, rank_of: Sequence[int]) -> None:
        self.exchange = exchange
        self.rank_of = tuple(rank_of)
        self.channels: tuple[Channel, ...] = ()
        self._between: list[int | None] = []  # by channel: its position among those of the exchange
        self._letters: dict[tuple[int, int], deque[Tensor]] = {}  # by channel and reader

    def open(self, channels: Sequence[Channel]) -> None:
        """Replace the channels of before, whose sources and readers are workers. Collective; see Exchange."""
        here = self.exchange.rank
        between: list[Channel] = []
        self.channels, self._between, self._letters = tuple(channels), [], {}
        for index, channel in enumerate(channels):
            source = self.rank_of[channel.source]
            readers = tuple(sorted({self.rank_of[reader] for reader in channel.readers} - {source}))
            self._between.append(len(between) if readers else None)
            if readers:
                between.append(replace(channel, source=source, readers=readers))
            mine = (reader for reader in channel.readers if self.rank_of[reader] == here)
            self._letters |= {(index, reader): deque() for reader in mine}
        self.exchange.open(between)

    def endpoint(self, worker: int) -> Endpoint:
        """The exchange of a worker of this rank."""
        return Endpoint(self, worker)

    def send(self, index: int, worker: int, tensor: Tensor) -> None:
        """What `Exchange.send` does, for `worker`."""
        channel = to_send(self.channels, index, worker, tensor)
        between = self._between[index]
        if between is not None:
            self.exchange.send(between, tensor)
        for reader in channel.readers:
            if (index, reader) in self._letters:
                self._letters[index, reader].append(tensor.detach().clone())

    def receive(self, index: int, worker: int) -> Tensor:
        """What `Exchange.receive` does, for `worker`; other workers of this rank can read it later."""
        channel = to_receive(self.channels, index, worker)
        letters = self._letters[index, worker]
        if letters:
            return letters.popleft()
        between = self._between[index]
        if between is None or self.rank_of[channel.source] == self.exchange.rank:
            raise TransportError(
                f"worker {worker} waits for worker {channel.source} of its own rank {self.exchange.rank} to "
                f"send on {channel}, which has not done so; let that worker take its turn first"
            )
        tensor = self.exchange.receive(between)
        for reader in channel.readers:
            if reader != worker and (index, reader) in self._letters:
                self._letters[index, reader].append(tensor)
        return tensor

    def abort(self) -> None:
        """See `Exchange.abort`."""
        self.exchange.abort()

    def close(self) -> None:
        """See `Exchange.close`."""
        self.exchange.close()
        self.channels, self._between, self._letters = (), [], {}


class Endpoint:
    """A worker's side of a Router; sends and receives as an Exchange does."""

    def __init__(self, router: Router, worker: int) -> None:
        self._router, self._worker = router, worker

    def send(self, channel: int, tensor: Tensor) -> None:
        self._router.send(channel, self._worker, tensor)

    def receive(self, channel: int) -> Tensor:
        return self._router.receive(channel, self._worker)

    def flush(self) -> None:
        self._router.exchange.flush()
