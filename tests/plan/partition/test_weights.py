"""Where ranks hold only their own weights, components have about as many each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from graphs import block, chain, small_unet

from parasample.plan.blocks import BlockGraph
from parasample.plan.partition import (
    choose_split,
    computed_blocks,
    contiguous_split,
    find_splits,
    possible_splits,
    report,
)


def top_light_unet(depth: int = 5) -> BlockGraph:
    """As U-Nets are: every level costs as much and has four times the weights of the one above, most of them
    on the way up.
    """
    graph = small_unet(depth, 2)

    def weight(name: str) -> int:
        parts = name.split(".")
        return 4 ** int(parts[1]) * (3 if parts[0] == "up" else 1) if len(parts) > 1 else 0

    return BlockGraph(tuple(replace(b, weight_bytes=weight(b.name)) for b in graph.blocks))


@pytest.mark.parametrize("components", [2, 3])
def test_weights_are_spread_and_compute_too(components: int) -> None:
    graph = top_light_unet()
    usual = report(graph, choose_split(graph, possible_splits(graph, components)))
    found = report(graph, choose_split(graph, possible_splits(graph, components, even_weights=True)))
    assert max(usual.weight_shares) > 0.6, "or this shows nothing"
    assert max(found.weight_shares) <= min(1 / components + 0.10, found.max_compute + 0.10)
    assert found.max_compute <= 1.5 / components


@pytest.mark.parametrize("limit", [0.45, 0.6])
def test_a_limit_holds_for_every_split(limit: float) -> None:
    graph = top_light_unet()
    splits = find_splits(graph, 3, max_weight=limit)
    assert splits and all(max(report(graph, split).weight_shares) <= limit for split in splits)


def test_in_a_row_within_a_limit() -> None:
    blocks = chain([1.0] * 10).blocks
    graph = BlockGraph(tuple(replace(b, weight_bytes=9 if i == 0 else 1) for i, b in enumerate(blocks[:-1]))
                       + blocks[-1:])  # fmt: skip
    free, limited = contiguous_split(graph, 2), contiguous_split(graph, 2, max_weight=0.6)
    assert report(graph, free).weight_shares == pytest.approx((13 / 18, 5 / 18))
    assert report(graph, limited).weight_shares == pytest.approx((10 / 18, 8 / 18))
    assert report(graph, limited).max_compute == pytest.approx(0.8)


def test_one_heavy_block_is_as_even_as_it_gets() -> None:
    blocks = chain([1.0] * 6).blocks
    graph = BlockGraph(tuple(replace(b, weight_bytes=90 if i == 2 else 2) for i, b in enumerate(blocks)))
    splits = possible_splits(graph, 3, even_weights=True)
    assert splits and all(max(report(graph, split).weight_shares) < 0.96 for split in splits)


def test_what_is_everywhere_weighs_only_where_it_is_needed() -> None:
    blocks = (
        block("time", 0.1, (), 4, everywhere=True, weights=10), block("a", 1, (), 4, weights=20),
        block("shift", 0.1, (0,), 4, everywhere=True, weights=30), block("b", 1, (1, 2), 4, weights=40),
        block("", 0, (3,), 4, exit=True),
    )  # fmt: skip
    graph = BlockGraph(blocks)
    split = contiguous_split(graph, 2)
    assert computed_blocks(graph, split, 0) == {1}
    assert computed_blocks(graph, split, 1) == {0, 2, 3, 4}
    assert report(graph, split).weight_shares == pytest.approx((0.2, 0.8))
