"""Which component computes which block, and what then has to travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parasample.errors import ConfigError
from parasample.plan.blocks import BlockGraph

Owners = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Split:
    """Components 0..N-1 of a denoiser; N-1 has its output.

    Attributes:
        owners: [n] per block the components that compute it, ascending: all of them for a block that is
            everywhere, one for most. A component that reads a block and is not among its owners gets it from
            the first of them.

    Raises:
        ConfigError: when a block has no owner, or a component has no block of its own.
    """

    owners: Owners

    def __post_init__(self) -> None:
        for index, owners in enumerate(self.owners):
            if not owners or list(owners) != sorted(set(owners)) or owners[0] < 0:
                raise ConfigError(
                    f"block {index} has owners {owners}; list at least one, each once, ascending"
                )
        missing = set(range(self.components)) - {owners[0] for owners in self.owners if len(owners) == 1}
        if missing and self.components > 1:
            raise ConfigError(
                f"component {min(missing)} of {self.components} has no block of its own; use fewer components"
            )

    @property
    def components(self) -> int:
        """N."""
        return 1 + max((owners[-1] for owners in self.owners), default=0)

    def blocks_of(self, component: int) -> tuple[int, ...]:
        """Indices of the blocks that a component computes."""
        return tuple(index for index, owners in enumerate(self.owners) if component in owners)

    def to_json(self) -> dict[str, Any]:
        """Plain lists; `from_json` reads them."""
        return {"owners": [list(owners) for owners in self.owners]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Split:
        """The split that `to_json` wrote."""
        return cls(tuple(tuple(owners) for owners in data["owners"]))


def computed_blocks(graph: BlockGraph, split: Split, component: int) -> frozenset[int]:
    """The blocks that a component runs: its own, and of those that are everywhere what these read."""
    found: set[int] = set()
    for index in reversed(range(len(graph))):
        everywhere = graph.blocks[index].everywhere
        mine = component in split.owners[index] and not everywhere
        if mine or (everywhere and any(reader in found for reader in graph.readers[index])):
            found.add(index)
    return frozenset(found)


@dataclass(frozen=True)
class Transfer:
    """One block's output on its way, once per step: from component `source` to each of `readers`."""

    block: int
    source: int
    readers: tuple[int, ...]


def transfers(graph: BlockGraph, split: Split) -> tuple[Transfer, ...]:
    """What travels in one step, in the order of the blocks; the denoiser's output goes to all components."""
    _check_fits(graph, split)
    last = len(graph) - 1
    found = []
    for index, owners in enumerate(split.owners):
        readers = {component for reader in graph.readers[index] for component in split.owners[reader]}
        if index == last:
            readers = set(range(split.components))
        readers -= set(owners)
        if readers and not graph.blocks[index].everywhere:
            found.append(Transfer(index, owners[0], tuple(sorted(readers))))
    return tuple(found)


@dataclass(frozen=True)
class SplitReport:
    """What a split costs.

    Attributes:
        compute_shares: [N] cost of a component's blocks over the cost of all blocks.
        weight_shares: [N] bytes of weights of a component's blocks over those of all blocks.
        bytes_sent, bytes_received: [N] hidden states per step; what goes to two readers counts twice.
        hidden_bytes: the sum of them over all components.
        output_bytes: of the denoiser's output, which goes to every other component on top of that.
        messages: transfers per step, one per reader, without the output's.
    """

    compute_shares: tuple[float, ...]
    weight_shares: tuple[float, ...]
    bytes_sent: tuple[int, ...]
    bytes_received: tuple[int, ...]
    hidden_bytes: int
    output_bytes: int
    messages: int

    @property
    def max_compute(self) -> float:
        """The largest compute share; the inverse is the speedup if every exchange hides behind compute."""
        return max(self.compute_shares)


def report(graph: BlockGraph, split: Split) -> SplitReport:
    """Shares and bytes of a split."""
    count = split.components
    total_weights = graph.total_weight_bytes or 1
    sent, received = [0] * count, [0] * count
    output_bytes = messages = 0
    for transfer in transfers(graph, split):
        size = graph.blocks[transfer.block].output_bytes
        if transfer.block == len(graph) - 1:
            output_bytes = size * len(transfer.readers)
            continue
        messages += len(transfer.readers)
        sent[transfer.source] += size * len(transfer.readers)
        for reader in transfer.readers:
            received[reader] += size
    mine = [computed_blocks(graph, split, component) for component in range(count)]
    return SplitReport(
        compute_shares=tuple(sum(graph.shares[i] for i in indices) for indices in mine),
        weight_shares=tuple(
            sum(graph.blocks[i].weight_bytes for i in indices) / total_weights for indices in mine
        ),
        bytes_sent=tuple(sent), bytes_received=tuple(received), hidden_bytes=sum(sent),
        output_bytes=output_bytes, messages=messages,
    )  # fmt: skip


def broadcast_bytes(graph: BlockGraph, components: int) -> int:
    """Bytes per step if each of the denoiser's own modules sent all that it returns to all other components.

    This is what sharing costs without knowing the data flow: AsyncDiff (arXiv 2406.06911) as published
    broadcasts like that. Its modules are those that the denoiser calls by itself; what is inside of them, and
    what every component computes, is not counted.
    """
    names = {block.name for block in graph.blocks}
    total = 0
    for block in graph.blocks[:-1]:
        around, _, entry = block.name.rpartition(".")
        in_a_list = entry.isdigit() and "." not in around and around not in names
        if block.everywhere or (around and not in_a_list):
            continue
        handed_on = sum(graph.blocks[index].output_bytes for index in block.inputs)
        total += handed_on if block.hands_on else block.output_bytes
    return total * (components - 1)


def _check_fits(graph: BlockGraph, split: Split) -> None:
    if len(split.owners) != len(graph):
        raise ConfigError(
            f"the split is of {len(split.owners)} blocks, the graph has {len(graph)}; split this graph"
        )
