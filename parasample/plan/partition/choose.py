"""The split that is taken where the user names none: fast, and kind to what stands in for missing values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parasample.plan.blocks import BlockGraph
from parasample.plan.partition.contiguous import contiguous_split
from parasample.plan.partition.find import find_splits, predict_step_seconds
from parasample.plan.partition.split import Split, report
from parasample.plan.partition.stages import flows_forward, hops

BYTES_PER_SECOND, LATENCY_S = 5e9, 20e-6  # of a link that is neither the slowest nor the fastest in use
# Hops that a nested split may have. Measured on the shipped model, 3 components: with 4 hops 6e-3 from
# sequential sampling without noise and 8e-2 with it, where components in a row are at 1e-3 and 5e-3.
QUIET_HOPS, NOISY_HOPS = 6, 2
HOP = 1.08  # how much faster a split must be for each hop more: latents are predicted further ahead
ALIKE = 1.1  # how much slower it may be to send less
# What a component may have of the weights above an even share, where ranks hold only their own.
WEIGHT_MARGIN = 0.08


def possible_splits(graph: BlockGraph, components: int, even_weights: bool = False) -> tuple[Split, ...]:
    """Components in a row, and those of `find_splits`.

    Args:
        even_weights: only those whose components have about as many weights each, which costs bytes. Where a
            few large blocks allow none, those with the least for the heaviest.

    Raises:
        ConfigError: if there are fewer blocks than components.
    """
    max_weight = 1 / components + WEIGHT_MARGIN if even_weights else math.inf
    in_a_row = contiguous_split(graph, components, max_weight)
    others = (split for split in find_splits(graph, components, max_weight) if split != in_a_row)
    splits = (in_a_row, *others)
    heaviest = [max(report(graph, split).weight_shares) for split in splits]
    limit = max(max_weight, min(heaviest))
    return tuple(split for split, share in zip(splits, heaviest, strict=True) if share <= limit)


def choose_split(
    graph: BlockGraph,
    splits: Sequence[Split],
    most_hops: int = QUIET_HOPS,
    bytes_per_second: float = BYTES_PER_SECOND,
    latency_s: float = LATENCY_S,
) -> Split:
    """A fast split of few hops, and of those alike the one that sends the least.

    Fewer hops are worth a little speed: latents are predicted less far ahead, or values are less stale.
    Components in a row have few, nested ones send less.

    Args:
        splits: of `possible_splits`.
        most_hops: of splits whose components are not in a row.
        bytes_per_second, latency_s: of the link between two devices; see `predict_step_seconds`.
    """
    allowed = [s for s in splits if hops(graph, s) <= most_hops or flows_forward(graph, s)]
    if not allowed:
        fewest = min(hops(graph, split) for split in splits)
        allowed = [split for split in splits if hops(graph, split) == fewest]
    seconds = {s: predict_step_seconds(graph, s, bytes_per_second, latency_s) for s in allowed}
    best = min(seconds, key=lambda split: seconds[split] * HOP ** hops(graph, split))
    alike = [
        split
        for split in allowed
        if hops(graph, split) == hops(graph, best) and seconds[split] <= ALIKE * seconds[best]
    ]
    return min(alike, key=lambda split: report(graph, split).hidden_bytes)
