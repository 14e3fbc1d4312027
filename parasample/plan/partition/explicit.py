"""A split that the user wrote down, by the names of modules."""

from __future__ import annotations

from collections.abc import Mapping

from parasample.errors import ConfigError
from parasample.plan.blocks import BlockGraph
from parasample.plan.partition.core import Core, core_of, split_of
from parasample.plan.partition.split import Split

# What a user may leave out: layers at either end, which are small but in small models.
MINOR_SHARE = 0.1


def explicit_split(graph: BlockGraph, components: Mapping[str, int]) -> Split:
    """Each block goes to the component of the longest module path that it lies in.

    `{"down_blocks": 0, "mid_block": 0, "up_blocks": 1}` is enough for a U-Net: blocks that cost less than a
    tenth may be left out and go where the fewest bytes travel, and the output is with the last component. ""
    stands for all blocks that nothing else names. A cheap block at the entrance (`conv_in`) is computed by
    each component that reads it, rather than sent, unless its own path is given.

    Raises:
        ConfigError: when a path matches no block, components are not 0..N-1, or a costly block is missing.
    """
    count = len(set(components.values()))
    if set(components.values()) != set(range(count)) or not count:
        raise ConfigError(
            f"components {sorted(set(components.values()))} are not numbered 0, 1, ... without gaps; "
            "renumber them"
        )
    for path in components:
        if not any(_inside(block.name, path) for block in graph.blocks):
            raise ConfigError(
                f"{path!r} matches no block; use the path of a module, such as {graph.blocks[0].name!r}"
            )
    core = core_of(graph)
    assigned: list[int | None] = []
    for index in core.blocks:
        matching = [path for path in components if _inside(graph.blocks[index].name, path)]
        assigned.append(components[max(matching, key=len)] if matching else None)
        if not matching and graph.shares[index] > MINOR_SHARE:
            raise ConfigError(
                f"block {graph.blocks[index].label} is in no component; name it or a module around it"
            )
    assigned[-1] = count - 1
    split = split_of(graph, core, _filled(core, assigned, count))
    owners = [
        (components[block.name],) if block.name in components and not block.everywhere and block.name else own
        for block, own in zip(graph.blocks, split.owners, strict=True)
    ]
    return Split(tuple(owners))


def _inside(name: str, path: str) -> bool:
    return path in ("", name) or name.startswith(f"{path}.")


def _filled(core: Core, assigned: list[int | None], count: int) -> list[int]:
    """Blocks without a component go where they cost the fewest bytes, looking at their neighbours."""
    filled = list(assigned)
    for at in [at for at, component in enumerate(assigned) if component is None]:
        costs = dict.fromkeys(range(count), 0)
        for source in core.inputs[at]:
            for component in costs:
                costs[component] += core.sizes[source] * (filled[source] != component)
        readers = {filled[reader] for reader in core.readers[at]} - {None}
        for component in costs:
            costs[component] += core.sizes[at] * len(readers - {component})
        filled[at] = min(costs, key=lambda component: (costs[component], component))
    return [component for component in filled if component is not None]
