"""Workers of one rank share its exchange: each reads what was sent to it, and a rank is sent a thing once."""

from __future__ import annotations

import pytest
import torch

from parasample.errors import ConfigError, TransportError
from parasample.runtime.transports.exchange import Channel
from parasample.runtime.transports.mailbox import Mailboxes
from parasample.runtime.transports.router import Router

RANK_OF = (1, 0, 1, 1)  # workers 0, 2 and 3 are on rank 1
CHANNELS = [
    Channel("away", 1, (0, 2, 3), (2,), torch.float32, 4),  # from rank 0 to three workers of rank 1
    Channel("home", 0, (2,), (3,), torch.float32, 3),  # stays on rank 1
    Channel("both", 0, (1, 3), (4,), torch.float32, 3),
]


def routers() -> tuple[Router, Router]:
    made = [Router(exchange, RANK_OF) for exchange in Mailboxes(2).exchanges]
    for router in made:
        router.open(CHANNELS)
    return made[0], made[1]


def test_workers_of_a_rank_read_the_same_messages_each_at_its_own_time() -> None:
    zero, one = routers()
    for number in range(3):
        zero.endpoint(1).send(0, torch.full((2,), float(number)))
    assert [float(one.endpoint(2).receive(0)[0]) for _ in range(2)] == [0, 1]
    assert [float(one.endpoint(0).receive(0)[0]) for _ in range(3)] == [0, 1, 2]
    assert [float(one.endpoint(2).receive(0)[0]), float(one.endpoint(3).receive(0)[0])] == [2, 0]
    assert zero.exchange.bytes_sent == 3 * 8, "once to the rank, not once to each of its workers"


def test_what_stays_on_a_rank_is_no_traffic_and_keeps_its_content() -> None:
    zero, one = routers()
    tensor = torch.ones(3)
    one.endpoint(0).send(1, tensor)
    tensor.zero_()
    assert one.endpoint(2).receive(1).tolist() == [1, 1, 1]
    assert one.exchange.bytes_sent == 0
    one.endpoint(0).send(2, torch.arange(4.0))
    assert zero.endpoint(1).receive(2).tolist() == one.endpoint(3).receive(2).tolist() == [0, 1, 2, 3]
    assert one.exchange.bytes_sent == 16


def test_mistakes_are_told_apart() -> None:
    _, one = routers()
    with pytest.raises(TransportError, match="worker 0 of its own rank 1"):
        one.endpoint(2).receive(1)
    with pytest.raises(ConfigError, match="does not read"):
        one.endpoint(0).receive(1)
    with pytest.raises(ConfigError, match="cannot send"):
        one.endpoint(2).send(1, torch.ones(3))
    one.close()
    with pytest.raises(TransportError, match="open"):
        one.endpoint(0).send(1, torch.ones(3))
