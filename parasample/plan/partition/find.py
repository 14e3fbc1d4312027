"""Finds splits: the trade-off between the largest compute share and the bytes that travel."""

from __future__ import annotations

import math
from collections.abc import Iterator

from parasample.errors import ConfigError
from parasample.plan.blocks import BlockGraph
from parasample.plan.partition.anneal import Assignment, anneal
from parasample.plan.partition.core import Core, core_of, split_of, weight_limits
from parasample.plan.partition.shells import nested_split
from parasample.plan.partition.split import Split, SplitReport, report

# How much above an even share the largest may be; each gives one point of the trade-off.
SLACKS = (1.005, 1.015, 1.03, 1.06, 1.1, 1.155)
# Annealing from the best nested split at these temperatures: to better it, and to leave it.
HEATS = (0.2, 2.0)
# Operations per second where costs are operations: what a data-centre GPU reaches in half precision.
FLOPS_PER_SECOND = 1e14
_STEPS = 2_000
# Blocks that nested splits tell apart, so that the search takes seconds; with many components time grows.
_UNITS, _UNITS_OF_MANY, _MANY = 150, 90, 5


def find_splits(graph: BlockGraph, components: int, max_weight: float = math.inf) -> tuple[Split, ...]:
    """Splits into `components`, none better than another in both compute and bytes; most even first.

    Args:
        max_weight: share of all weights that a component may have, if there are such splits; else as little
            more as there must be.

    Raises:
        ConfigError: if there are fewer blocks than components.
    """
    core = core_of(graph)
    costly = sum(share > 0 for share in core.shares)
    if not 1 <= components <= max(costly, 1):
        raise ConfigError(
            f"components={components} is outside 1..{max(costly, 1)}, the blocks that can be told apart; "
            "pass fewer"
        )
    if components == 1:
        return (split_of(graph, core, [0] * len(core.blocks)),)
    for limit in weight_limits(core, max_weight):
        found = _search(graph, core, components, limit)
        if found:
            break
    return tuple(split for _, split in _frontier(found))


def _search(
    graph: BlockGraph, core: Core, components: int, max_weight: float
) -> list[tuple[SplitReport, Split]]:
    """What the slacks come to; none if no split keeps to the limit of weights."""
    found: list[tuple[SplitReport, Split]] = []
    units = _UNITS_OF_MANY if components >= _MANY else _UNITS
    before: list[list[int]] = []  # what the slack before this one came to
    for slack in _slacks(components):
        if found and slack > SLACKS[-1]:
            break
        max_share = max(slack / components, max(core.shares))
        nested = nested_split(core, components, max_share, max_weight, units)
        starts = [(nested, heat) for heat in HEATS if nested] + [(start, HEATS[0]) for start in before]
        ends = [
            anneal(core, start, components, max_share, max_weight, _STEPS, heat) for start, heat in starts
        ]
        before = sorted(ends, key=lambda end: Assignment(core, end, components).bytes)[:1]
        for assigned in [nested, *ends]:
            if assigned and len(set(assigned)) == components and _keeps_to(core, assigned, max_weight):
                split = split_of(graph, core, _numbered(core, assigned))
                found.append((report(graph, split), split))
    return found


def _keeps_to(core: Core, assigned: list[int], max_weight: float) -> bool:
    return max(Assignment(core, assigned, max(assigned) + 1).weights) <= max_weight + 1e-9


def find_split(
    graph: BlockGraph,
    components: int,
    *,
    bytes_per_second: float = 5e9,
    latency_s: float = 20e-6,
    step_seconds: float | None = None,
) -> Split:
    """The split of least predicted seconds per step; see `predict_step_seconds` for the arguments."""
    return min(
        find_splits(graph, components),
        key=lambda split: predict_step_seconds(graph, split, bytes_per_second, latency_s, step_seconds),
    )


def predict_step_seconds(
    graph: BlockGraph,
    split: Split,
    bytes_per_second: float,
    latency_s: float,
    step_seconds: float | None = None,
) -> float:
    """Seconds per step of the slowest component: its compute, and its exchange as if nothing hid it.

    Exchange does hide behind compute, but it takes memory bandwidth and cores from it, and a link is rarely
    as fast as its name: taken in full it keeps a split from sending much to gain little.

    Args:
        bytes_per_second, latency_s: of the link between two devices, one way, and of one message.
        step_seconds: of the whole denoiser on one device; by default the graph's own seconds, or its
            operations at 1e14 per second.
    """
    if step_seconds is None:
        step_seconds = graph.total_cost / (FLOPS_PER_SECOND if graph.unit == "flops" else 1.0)
    found = report(graph, split)
    exchange = [
        max(sent, received) / bytes_per_second
        for sent, received in zip(found.bytes_sent, found.bytes_received, strict=True)
    ]
    busy = max(s * step_seconds + e for s, e in zip(found.compute_shares, exchange, strict=True))
    return busy + latency_s * found.messages / split.components


def _slacks(components: int) -> Iterator[float]:
    """Those of the trade-off, and then, for a few large blocks that no even split fits, up to any."""
    yield from SLACKS
    slack = SLACKS[-1]
    while slack < components:
        slack *= 1.2
        yield slack


def _numbered(core: Core, assigned: list[int]) -> list[int]:
    """Components renamed: the one with the output last, the others by where their work begins."""
    order = sorted(
        set(assigned), key=lambda c: (c == assigned[-1], next(i for i, o in enumerate(assigned) if o == c))
    )
    return [order.index(component) for component in assigned]


def _frontier(found: list[tuple[SplitReport, Split]]) -> list[tuple[SplitReport, Split]]:
    kept: list[tuple[SplitReport, Split]] = []
    for entry in sorted(found, key=lambda e: (round(e[0].max_compute, 4), e[0].hidden_bytes)):
        if not kept or entry[0].hidden_bytes < kept[-1][0].hidden_bytes:
            kept.append(entry)
    return kept
