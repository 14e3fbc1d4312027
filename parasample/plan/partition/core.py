"""What a search has to decide: blocks of one component each, without those that follow by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parasample.plan.blocks import BlockGraph
from parasample.plan.partition.split import Split

# Up to this share of the cost a block is computed several times rather than sent.
REPEATED_SHARE = 0.01


@dataclass(frozen=True)
class Core:
    """The blocks to assign, m of them, in order of completion; the last is the denoiser's output.

    Attributes:
        blocks: [m] their indices in the graph.
        shares: [m] of the cost.
        sizes: [m] bytes of their outputs.
        inputs, readers: [m] positions in this list.
    """

    blocks: tuple[int, ...]
    shares: tuple[float, ...]
    sizes: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    readers: tuple[tuple[int, ...], ...]


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
    return Core(
        blocks,
        tuple(graph.shares[b] for b in blocks),
        tuple(graph.blocks[b].output_bytes for b in blocks),
        inputs,
        tuple(map(tuple, readers)),
    )


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
