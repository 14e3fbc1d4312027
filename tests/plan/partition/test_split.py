"""What travels under a split, what it costs, and which splits are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from graphs import block, chain, small_unet

from parasample.errors import ConfigError
from parasample.plan.blocks import BlockGraph
from parasample.plan.partition import (
    Split,
    Transfer,
    broadcast_bytes,
    explicit_split,
    find_split,
    find_splits,
    report,
    transfers,
)


def test_transfers_go_to_each_reader_once_and_the_output_to_all() -> None:
    blocks = (
        block("time", 1, (), 4, everywhere=True), block("a", 1, (0,), 10), block("b", 1, (0, 1), 20),
        block("c", 1, (1, 2), 40), block("d", 1, (1, 3), 80), block("", 0, (4,), 5, exit=True),
    )  # fmt: skip
    graph = BlockGraph(blocks)
    split = Split(((0, 1, 2), (0,), (1,), (2,), (2,), (2,)))
    assert transfers(graph, split) == (
        Transfer(1, 0, (1, 2)), Transfer(2, 1, (2,)), Transfer(5, 2, (0, 1)),
    )  # fmt: skip
    found = report(graph, split)
    assert (found.bytes_sent, found.bytes_received) == ((20, 20, 0), (0, 10, 30))
    assert (found.hidden_bytes, found.output_bytes, found.messages) == (40, 10, 3)
    assert found.compute_shares == pytest.approx((0.4, 0.4, 0.4)), "component 2 needs no time"


def test_a_broadcast_sends_what_the_denoisers_own_modules_return() -> None:
    """An entry of a list counts, what is inside of it does not; an exit that hands on counts its tensors."""
    blocks = (
        block("time", 1, (), 4, everywhere=True), block("conv_in", 1, (0,), 10),
        block("down.0.resnet", 1, (1,), 20), block("down.0", 0, (1, 2), 0, exit=True),
        block("up.0.resnet", 1, (2,), 40), block("up.0", 0, (4,), 80, exit=True),
        block("head.0", 1, (5,), 160), block("head", 0, (6,), 320, exit=True),
        block("", 0, (7,), 640, exit=True),
    )  # fmt: skip
    assert broadcast_bytes(BlockGraph(blocks), 3) == 2 * (10 + (10 + 20) + 80 + 320)


def test_an_exit_that_hands_on_needs_nothing() -> None:
    graph = small_unet()
    exit_index = graph.index("down")
    split = find_split(graph, 2)
    readers = {t.block: t.readers for t in transfers(graph, split)}
    moved = Split(tuple((1 - o[0],) if i == exit_index else o for i, o in enumerate(split.owners)))
    assert {t.block: t.readers for t in transfers(graph, moved)} == readers


def test_a_block_with_several_owners_is_sent_to_none_of_them() -> None:
    graph = small_unet()
    split = find_split(graph, 2)
    conv_in = graph.index("conv_in")
    readers = {c for r in graph.readers[conv_in] for c in split.owners[r]}
    assert set(split.owners[conv_in]) == readers
    assert conv_in not in {t.block for t in transfers(graph, split)}


@pytest.mark.parametrize("components", [2, 3, 4])
def test_every_component_works_and_the_last_has_the_output(components: int) -> None:
    for graph in (small_unet(4, 2), chain([1.0] * 12)):
        for split in find_splits(graph, components):
            assert split.components == components
            assert split.owners[-1] == (components - 1,)
            assert all(owners == tuple(range(components)) for b, owners in
                       zip(graph.blocks, split.owners, strict=True) if b.everywhere)  # fmt: skip
            first = [min(i for i, o in enumerate(split.owners) if o == (c,)) for c in range(components - 1)]
            assert first == sorted(first)


def test_a_unet_is_cut_into_shells() -> None:
    """The outer levels' skip connections stay in one component: only the bottom's input and output go."""
    graph = small_unet(4, 2)
    slow_link = find_split(graph, 2, bytes_per_second=1e2)
    names = {graph.blocks[i].name for i, owners in enumerate(slow_link.owners) if owners == (1,)}
    assert {"down.0.0", "up.0.1"} <= names
    assert {"down.3.1", "up.3.0"}.isdisjoint(names)
    contiguous = explicit_split(graph, {"down": 0, "up": 1})
    assert 2 * report(graph, slow_link).hidden_bytes < report(graph, contiguous).hidden_bytes


def test_a_chain_is_cut_into_even_runs() -> None:
    graph = chain([1.0] * 12)
    found = report(graph, find_split(graph, 4))
    assert found.max_compute == pytest.approx(0.25)
    assert found.hidden_bytes == 3 * 100


def test_a_few_large_blocks_are_split_as_evenly_as_they_allow() -> None:
    for costs, share in (([1.0, 1.0, 1.0], 2 / 3), ([9.0, 1.0], 0.9)):
        graph = chain(costs)
        assert report(graph, find_split(graph, 2)).max_compute == pytest.approx(share)


def test_the_trade_off_has_no_point_that_another_betters() -> None:
    narrow = 8  # a cut behind this block is cheap, and not quite even
    blocks = chain([1.0] * 20).blocks
    graph = BlockGraph(tuple(replace(b, output_bytes=1) if i == narrow else b for i, b in enumerate(blocks)))
    points = [report(graph, split) for split in find_splits(graph, 2)]
    assert [p.max_compute for p in points] == pytest.approx([0.5, 0.55])
    assert [p.hidden_bytes for p in points] == [100, 1]


def test_searching_twice_gives_the_same() -> None:
    graph = small_unet(5, 2)
    assert find_splits(graph, 3) == find_splits(graph, 3)


def test_one_component_sends_nothing() -> None:
    graph = small_unet()
    split = find_split(graph, 1)
    assert transfers(graph, split) == ()
    assert report(graph, split).compute_shares == (pytest.approx(1.0),)


@pytest.mark.parametrize("components", [0, 13, 14])
def test_more_components_than_blocks_are_refused(components: int) -> None:
    with pytest.raises(ConfigError, match=r"outside 1\.\.12"):
        find_split(chain([1.0] * 12), components)


def test_an_explicit_split_follows_the_longest_path() -> None:
    graph = small_unet(3, 2)
    split = explicit_split(graph, {"down": 0, "up": 1, "up.2.0": 0})
    owners = {b.name: o for b, o in zip(graph.blocks, split.owners, strict=True)}
    assert owners["down.1.0"] == owners["up.2.0"] == (0,)
    assert owners["up.2.1"] == owners["up.0.0"] == owners["conv_out"] == owners[""] == (1,)
    assert owners["time"] == owners["conv_in"] == (0, 1)
    assert explicit_split(graph, {"": 1, "down": 0}).owners[graph.index("up.2.0")] == (1,)


def test_an_explicit_split_repeats_nothing_that_it_names() -> None:
    """Whether a block is cheap enough to repeat is measured, and would change the samples."""
    graph = small_unet()
    for time in ({}, {"time": 0}):
        owners = explicit_split(graph, {"conv_in": 0, "down": 0, "up": 1} | time).owners
        assert owners[graph.index("conv_in")] == (0,)
        assert owners[graph.index("time")] == (0, 1), "what everybody computes stays so"


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({}, "without gaps"),
        ({"down": 0, "up": 2}, "without gaps"),
        ({"down": 1, "up": 2}, "without gaps"),
        ({"down": 0, "up": 1, "mid": 0}, "'mid' matches no block"),
        ({"down": 0, "u": 1}, "'u' matches no block"),
        ({"down": 0, "up.0": 1}, r"block up.2.0 is in no component"),
    ],
)
def test_an_explicit_split_that_cannot_be(components: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explicit_split(small_unet(), components)


def test_a_split_knows_its_graph_and_survives_json() -> None:
    graph = small_unet()
    split = find_split(graph, 2)
    assert Split.from_json(json.loads(json.dumps(split.to_json()))) == split
    with pytest.raises(ConfigError, match="split this graph"):
        transfers(small_unet(4), split)


@pytest.mark.parametrize("owners", [((),), ((1, 0),), ((0, 0),), ((-1,),), ((1,), (1,)), ((0, 1), (0,))])
def test_a_split_that_cannot_be(owners: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ConfigError):
        Split(owners)
