"""What a search has to decide: blocks of one component each, without those that follow by themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parasample.plan.blocks import BlockGraph
from parasample.plan.partition.split import Split

# Up to this share of the cost a block is computed several times rather than sent.
REPEATED_SHARE = 0.01
# What blocks this far apart in the core need, every component is taken to need.
_FAR = 0.25


@dataclass(frozen=True)
class Core:
    """The blocks to assign, m of them, in order of completion; the last is the denoiser's output.

    Attributes:
        blocks: [m] their indices in the graph.
        shares: [m] of the cost.
        weights: [m] of the bytes of all weights. Those of a block that is not listed are with the first
            block that needs it, or, if blocks all over the list do, counted in `everywhere_weight`.
        sizes: [m] bytes of their outputs.
        inputs, readers: [m] positions in this list.
    """

    blocks: tuple[int, ...]
    shares: tuple[float, ...]
    weights: tuple[float, ...]
    sizes: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    readers: tuple[tuple[int, ...], ...]
    everywhere_weight: float


def core_of(graph: BlockGraph) -> Core:
    """Leaves out what every component computes, what each reader may compute, and exits that hand on."""
    last = len(graph) - 1

    def follows(index: int) -> bool:
        block = graph.blocks[index]
        return block.everywhere or block.hands_on or repeated(graph, index)

    blocks = tuple(index for index in range(len(graph)) if index == last or not follows(index))
    position = {block: at for at, block in enumerate(blocks)}
    inputs = tuple(tuple(position[i] for i in graph.blocks[b].inputs if i in position) for b in blocks)
    readers: list[list[int]] = [[] for _ in blocks]
    for at, sources in enumerate(inputs):
        for source in sources:
            readers[source].append(at)
    weights, everywhere_weight = _weights(graph, position)
    return Core(
        blocks,
        tuple(graph.shares[b] for b in blocks),
        tuple(weights),
        tuple(graph.blocks[b].output_bytes for b in blocks),
        inputs,
        tuple(map(tuple, readers)),
        everywhere_weight,
    )


def _weights(graph: BlockGraph, position: dict[int, int]) -> tuple[list[float], float]:
    """[m] shares of the weights, and the share of what blocks all over the core need."""
    span: dict[int, tuple[int, int]] = {at: (place, place) for at, place in position.items()}
    shares, everywhere = [0.0] * len(position), 0.0
    for index in reversed(range(len(graph))):  # readers before what they read
        readers = [span[reader] for reader in graph.readers[index] if reader in span]
        if index not in position and readers:
            span[index] = min(first for first, _ in readers), max(last for _, last in readers)
        first, last = span.get(index, (0, len(position)))
        share = graph.blocks[index].weight_bytes / (graph.total_weight_bytes or 1)
        if last - first > _FAR * len(position):
            everywhere += share
        else:
            shares[first] += share
    return shares, everywhere


def weight_limits(core: Core, max_weight: float) -> Iterator[float]:
    """Limits of the core's weights per component: what `max_weight` leaves, then ever more, then any."""
    limit = max(max_weight - core.everywhere_weight, max(core.weights), 1e-3)
    while limit < 1.0:
        yield limit
        limit *= 1.2
    yield math.inf


def repeated(graph: BlockGraph, index: int) -> bool:
    """Whether each component that reads this block computes it: it is cheap and needs nothing from others."""
    block = graph.blocks[index]
    free = all(graph.blocks[i].everywhere for i in block.inputs)
    return free and graph.shares[index] <= REPEATED_SHARE and bool(graph.readers[index])


def split_of(graph: BlockGraph, core: Core, assigned: Sequence[int]) -> Split:
    """The whole split that follows from the components of the core's blocks, [m]."""
    everyone = tuple(range(max(assigned) + 1))
    owners: dict[int, tuple[int, ...]] = {b: (c,) for b, c in zip(core.blocks, assigned, strict=True)}
    for index in reversed(range(len(graph))):  # readers before what they read
        if index in owners:
            continue
        if graph.blocks[index].everywhere:
            owners[index] = everyone
        elif repeated(graph, index):
            owners[index] = tuple(sorted({c for reader in graph.readers[index] for c in owners[reader]}))
    for index in range(len(graph)):
        if index not in owners:  # handed on: with the last of its tensors
            inputs = graph.blocks[index].inputs
            owners[index] = owners[inputs[-1]][:1] if inputs else everyone[-1:]
    return Split(tuple(owners[index] for index in range(len(graph))))
