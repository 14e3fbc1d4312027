"""A traced graph is complete: nothing that a block reads is missing; and exact: it lists nothing else."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import pytest
import torch
from replay import copied, nan_like, replay
from tiny_denoisers import DENOISERS, Case

from parasample.bridge.trace import trace
from parasample.bridge.trace.tensors import distinct
from parasample.plan.blocks import BlockGraph


def has_nan(output: object) -> bool:
    return any(bool(tensor.isnan().any()) for tensor in distinct(output))


def handed_on(graph: BlockGraph) -> set[int]:
    """Exits that hand on other blocks' tensors: there is nothing of theirs to replace."""
    return {i for i, block in enumerate(graph.blocks) if block.output_bytes == 0}


@lru_cache(maxsize=1)  # the tests of one denoiser come one after another
def traced(name: str) -> tuple[Case, BlockGraph, dict[int, Any]]:
    """A denoiser, its graph and the outputs of all of its blocks."""
    denoiser, args, kwargs = DENOISERS[name]()
    graph = trace(denoiser, args, kwargs, costs="flops")
    return (denoiser, args, kwargs), graph, replay(denoiser, args, kwargs, graph, {})


@pytest.fixture(scope="module", params=DENOISERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_local_blocks_need_only_what_the_graph_lists(name: str) -> None:
    case, graph, plain = traced(name)
    assert set(plain) == set(range(len(graph)))
    draw = random.Random(name)
    for local_share in (0.3, 0.6):
        local = {i for i, b in enumerate(graph.blocks) if b.everywhere or draw.random() < local_share}
        needed = {source for i in local for source in graph.blocks[i].inputs}
        replaced = {
            i: plain[i] if i in needed else copied(plain[i], nan_like)
            for i in range(len(graph))
            if i not in local | handed_on(graph)
        }
        outputs = replay(*case, graph, replaced)
        for i in local:
            for ours, theirs in zip(distinct(outputs[i]), distinct(plain[i]), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=graph.blocks[i].label)


def test_every_listed_input_is_read(name: str) -> None:
    case, graph, plain = traced(name)
    draw = random.Random(name)
    edges = [(i, source) for i, block in enumerate(graph.blocks) for source in block.inputs]
    for reader, source in draw.sample(edges, min(len(edges), 5)):
        others = set(range(len(graph))) - {reader, source} - handed_on(graph)
        replaced = {i: plain[i] for i in others} | {source: copied(plain[source], nan_like)}
        outputs = replay(*case, graph, replaced)
        assert has_nan(outputs[reader]), (
            f"{graph.blocks[reader].label} does not read {graph.blocks[source].label}"
        )


@pytest.mark.parametrize(
    ("name", "reader", "source"),
    [
        ("SVD", "up_blocks.1", "conv_in"),
        ("AnimateDiff-ControlNet", "up_blocks.1", "conv_in"),
        ("HunyuanDiT", "blocks.4", "blocks.1"),
    ],
)
def test_skip_connections_are_found(name: str, reader: str, source: str) -> None:
    """From one end of the denoiser to the other, past all that lies between."""
    _, graph, _ = traced(name)

    def inside(label: str, module: str) -> bool:
        return label == module or label.startswith(f"{module}.")

    assert any(
        inside(block.name, reader) and inside(graph.blocks[index].name, source)
        for block in graph.blocks
        for index in block.inputs
    )
