"""Ranks emulated in one process exchange as processes do."""

from __future__ import annotations

import pytest
import torch
from exchange_script import ROUNDS, every_dtype_and_shape, is_message, message

from parasample.errors import ConfigError, TransportError
from parasample.runtime.transports.exchange import Channel
from parasample.runtime.transports.mailbox import LocalExchange, Mailboxes

CHANNELS = [Channel("a", 0, (1, 2), (3,), torch.float32, 2), Channel("b", 1, (0,), (5,), torch.int64)]


def opened() -> tuple[LocalExchange, ...]:
    exchanges = Mailboxes(3).exchanges
    for exchange in exchanges:
        exchange.open(CHANNELS)
    return exchanges


def test_messages_arrive_in_order_at_every_reader() -> None:
    exchanges, channels = Mailboxes(3).exchanges, every_dtype_and_shape()
    for exchange in exchanges:
        exchange.open(channels)
        for number, channel in enumerate(channels):
            for index in range(ROUNDS if channel.source == exchange.rank else 0):
                exchange.send(number, message(channel, index))
        exchange.flush()
    for number, channel in enumerate(channels):
        for reader in channel.readers:
            found = [exchanges[reader].receive(number) for _ in range(ROUNDS)]
            assert all(is_message(tensor, channel, index) for index, tensor in enumerate(found))


def test_a_message_is_what_was_sent_however_it_changes() -> None:
    sender, *readers = opened()
    tensor = torch.arange(6.0)[::2]
    sender.send(0, tensor)
    tensor.zero_()
    first = readers[0].receive(0)
    assert first.tolist() == [0, 2, 4]
    first.zero_()
    assert readers[1].receive(0).tolist() == [0, 2, 4]
    assert (sender.bytes_sent, readers[0].bytes_sent) == (2 * 3 * 4, 0)


def test_what_was_not_sent_cannot_be_received() -> None:
    with pytest.raises(TransportError, match="rank 2 of 3 waits for rank 0 to send on channel 'a'"):
        opened()[2].receive(0)


def test_opening_again_drops_what_was_not_read() -> None:
    first, second, _ = exchanges = opened()
    first.send(0, torch.ones(3))
    for exchange in exchanges:
        exchange.open(CHANNELS[::-1])
    with pytest.raises(TransportError):
        second.receive(1)
    second.send(0, torch.ones(5, dtype=torch.int64))
    assert first.receive(0).tolist() == [1] * 5


def test_unlike_channels_are_refused() -> None:
    first, second, _ = Mailboxes(3).exchanges
    first.open(CHANNELS)
    with pytest.raises(ConfigError, match="rank 1 differ from those of rank 0"):
        second.open(CHANNELS[:1])


@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.zeros(3).double(), torch.zeros(3, 1)])
def test_a_tensor_that_does_not_fit_is_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="channel 'a' carries torch.float32"):
        opened()[0].send(0, wrong)


def test_foreign_channels_are_refused() -> None:
    first, second, third = opened()
    with pytest.raises(ConfigError, match="which is rank 0's"):
        second.send(0, torch.zeros(3))
    with pytest.raises(ConfigError, match="does not read"):
        third.receive(1)


def test_one_rank_that_gives_up_or_closes() -> None:
    first, second, third = opened()
    third.close()
    with pytest.raises(TransportError, match="open()"):
        third.receive(0)
    first.send(0, torch.zeros(3))
    second.abort()
    with pytest.raises(TransportError, match="rank 1 gave up"):
        first.send(0, torch.zeros(3))
    for exchange in (first, second, third):
        exchange.open(CHANNELS)
    first.flush()
