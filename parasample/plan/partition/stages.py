"""Components cut further into stages, which only read earlier ones.

In a nested split the outer component has blocks before and after those of the inner one: what the denoiser
does first and last. To work ahead of the latents, the outer component does its first part for a later step
than its last part. A stage is such a part: all blocks of a component that are equally many hops away from the
denoiser's output, where going from one component to another is a hop.
"""

from __future__ import annotations

from dataclasses import dataclass

from parasample.plan.blocks import BlockGraph
from parasample.plan.partition.split import Split


@dataclass(frozen=True)
class Stages:
    """Stages 0..V-1 of a split's components; V-1 holds the denoiser's output.

    Attributes:
        split: with stages in the place of components.
        component: [V] whose stage it is.
        phase: [V] hops between the latents and the stage: what a stage reads has a smaller one.
    """

    split: Split
    component: tuple[int, ...]
    phase: tuple[int, ...]

    @property
    def count(self) -> int:
        """V."""
        return len(self.component)


def whole_components(split: Split) -> Stages:
    """Every component as one stage."""
    every = tuple(range(split.components))
    return Stages(split, every, every)


def stages(graph: BlockGraph, split: Split) -> Stages:
    """The fewest stages that only read earlier ones: whole components where those do already."""
    if flows_forward(graph, split):
        return whole_components(split)
    left = _hops_left(graph, split)
    total = max(left)
    places = [(total - hops, owners[0]) for hops, owners in zip(left, split.owners, strict=True)]
    blocks = graph.blocks
    parts = sorted({place for place, block in zip(places, blocks, strict=True) if not block.everywhere})
    parts.remove(places[-1])  # the output's is the last, also where somebody has nothing to do for it
    parts.append(places[-1])
    every = tuple(range(len(parts)))
    owners = tuple(
        every if block.everywhere else (parts.index(place),)
        for place, block in zip(places, blocks, strict=True)
    )
    return Stages(Split(owners), tuple(c for _, c in parts), tuple(phase for phase, _ in parts))


def hops(graph: BlockGraph, split: Split) -> int:
    """How often the longest way through the denoiser goes from one component to another.

    Each hop makes what arrives one batch older, or the latents one batch further ahead.
    """
    return max(_hops_left(graph, split))


def flows_forward(graph: BlockGraph, split: Split) -> bool:
    """Whether every component only reads components before it."""
    for index, block in enumerate(graph.blocks):
        for component in split.owners[index]:
            for source in block.inputs:
                owners = split.owners[source]
                if component not in owners and owners[0] > component:
                    return False
    return True


def _hops_left(graph: BlockGraph, split: Split) -> list[int]:
    """[n] hops from each block to the denoiser's output, at most; what nobody reads is with what it reads."""

    def hop(source: int, reader: int) -> int:
        return int(not set(split.owners[source]) & set(split.owners[reader]))

    left = [0] * len(graph)
    for index in reversed(range(len(graph))):
        for source in graph.blocks[index].inputs:
            left[source] = max(left[source], left[index] + hop(source, index))
    for index, readers in enumerate(graph.readers[:-1]):
        if not readers:
            ways = [left[source] - hop(source, index) for source in graph.blocks[index].inputs]
            left[index] = max(min(ways, default=0), 0)
    return left
