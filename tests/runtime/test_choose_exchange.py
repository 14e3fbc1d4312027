"""Which exchange the ranks use: agreed by all of them, and said where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parasample.errors import ConfigError
from parasample.runtime.transports import LOCAL, TorchRanks, choose
from parasample.runtime.transports.choose import make_exchange


class Peers(TorchRanks):
    """Rank 0 of two, whose peer says the same but for `changes` to its facts."""

    def __init__(self, **changes: int) -> None:
        self.rank, self.size = 0, 2
        self.changes = changes

    def all_gather(self, part: Tensor) -> Tensor:
        assert part.dtype == torch.uint8 and part.shape == (1, 34), "no objects travel, only bytes"
        other = part.clone()
        for place, value in self.changes.items():
            other[0, {"wanted": 0, "able": 1, "host": 9}[place]] = (
                value if place != "host" else 255 - part[0, 9]
            )
        return torch.cat([part, other])


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(choose.VARIABLE, raising=False)
    for name in ("GlooExchange", "SharedMemoryExchange"):
        monkeypatch.setattr(choose, name, lambda *_, name=name: name)


@pytest.mark.parametrize(
    ("changes", "device", "expected"),
    [
        ({}, "cpu", "SharedMemoryExchange"),
        ({}, "cuda:1", "GlooExchange"),
        ({"able": 0}, "cpu", "GlooExchange"),
        ({"host": -1}, "cpu", "GlooExchange"),
    ],
)
def test_shared_memory_where_every_rank_can(changes: dict[str, int], device: str, expected: Any) -> None:
    assert make_exchange(Peers(**changes), device) == expected


def test_variable_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choose.VARIABLE, "gloo")
    assert make_exchange(Peers()) == "GlooExchange"
    monkeypatch.setenv(choose.VARIABLE, "shm")
    assert make_exchange(Peers()) == "SharedMemoryExchange"


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({"able": 0}, "cpu", "rank 1 cannot"),
        ({"host": -1}, "cpu", "several hosts"),
        ({}, "cuda", "lie on cuda"),
    ],
)
def test_what_cannot_be_had_is_refused(
    changes: dict[str, int], device: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(choose.VARIABLE, "shm")
    with pytest.raises(ConfigError, match=reason):
        make_exchange(Peers(**changes), device)


@pytest.mark.parametrize(("wanted", "other"), [("shm", 2), ("gloo", 0), ("smoke", 3)])
def test_unlike_or_unknown_wishes_are_refused(
    wanted: str, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(choose.VARIABLE, wanted)
    with pytest.raises(ConfigError, match=f"PARASAMPLE_EXCHANGE='{wanted}' on rank 0 of 2"):
        make_exchange(Peers(wanted=other))


def test_one_rank_exchanges_with_nobody() -> None:
    exchange = make_exchange(LOCAL)
    exchange.open([])
    assert (exchange.rank, exchange.size, exchange.bytes_sent) == (0, 1, 0)
