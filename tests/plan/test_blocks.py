"""A block graph refuses what cannot be a data flow, and survives the way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parasample.errors import ConfigError
from parasample.plan.blocks import Block, BlockGraph


def block(name: str, *inputs: int, **changes: Any) -> Block:
    fields: dict[str, Any] = {
        "call": 0,
        "cost": 1.0,
        "output_bytes": 8,
        "weight_bytes": 4,
        "everywhere": False,
    }
    return Block(name=name, inputs=inputs, **fields | changes)


def test_shares_readers_and_names() -> None:
    graph = BlockGraph((block("a", cost=3.0), block("b", 0), block("b", 0, 1, call=1), block("", 2, cost=0)))
    assert graph.shares == (0.6, 0.2, 0.2, 0.0)
    assert graph.readers == ((1, 2), (2,), (3,), ())
    assert graph.total_weight_bytes == 16
    assert [b.label for b in graph.blocks] == ["a", "b", "b#1", "the output"]
    assert graph.index("b", 1) == 2
    with pytest.raises(ConfigError, match="no block 'c'"):
        graph.index("c")


def test_a_free_graph_has_no_shares() -> None:
    assert BlockGraph((block("a", cost=0), block("", 0, cost=0))).shares == (0.0, 0.0)


def test_json_keeps_everything() -> None:
    graph = BlockGraph((block("a", everywhere=True), block("", 0, exit=True)), "flops")
    assert BlockGraph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


@pytest.mark.parametrize(
    "data", [{}, {"unit": "flops", "blocks": [{"name": ""}]}, {"unit": "s", "blocks": []}]
)
def test_other_json_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        BlockGraph.from_json(data)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((), "must be the denoiser's output"),
        ((block("a"),), "must be the denoiser's output"),
        ((block("a"), block("a"), block("")), "listed twice"),
        ((block("a", 0), block("")), "can read"),
        ((block("a", -1), block("")), "can read"),
        ((block("a"), block("b"), block("", 1, 0)), "ascending"),
        ((block("a"), block("", 0, 0)), "ascending"),
        ((block("a", cost=float("nan")), block("")), "finite"),
        ((block("a", cost=-1.0), block("")), "finite"),
        ((block("a", output_bytes=-1), block("")), "negative"),
        ((block("a"), block("b", 0, everywhere=True), block("")), "everywhere but reads a"),
    ],
)
def test_what_cannot_be_is_refused(blocks: tuple[Block, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BlockGraph(blocks)
