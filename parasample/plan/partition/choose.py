"""The split that is taken where the user names none: fast, and kind to what stands in for missing values."""

from __future__ import annotations

from functools import partial

from parasample.plan.blocks import BlockGraph
from parasample.plan.partition.contiguous import contiguous_split
from parasample.plan.partition.find import find_splits, predict_step_seconds
from parasample.plan.partition.split import Split
from parasample.plan.partition.stages import hops

BYTES_PER_SECOND, LATENCY_S = 5e9, 20e-6  # of a link that is neither the slowest nor the fastest in use
MAX_HOPS = 3  # what extrapolated values survive: measured, one hop more and their errors grow
WORTH = 1.1  # how much slower a split may be that has fewer hops, and so less to guess


def choose_split(
    graph: BlockGraph,
    components: int,
    published: bool = False,
    bytes_per_second: float = BYTES_PER_SECOND,
    latency_s: float = LATENCY_S,
) -> Split:
    """The split of fewest hops that is about as fast as any; with `published` the fastest.

    Fewer hops are worth a little speed: values that are read are less stale, or latents predicted less far
    ahead. Components that follow one another have few, nested ones send less.

    Args:
        bytes_per_second, latency_s: of the link between two devices; see `predict_step_seconds`.

    Raises:
        ConfigError: if there are fewer blocks than components.
    """
    seconds = partial(predict_step_seconds, graph, bytes_per_second=bytes_per_second, latency_s=latency_s)
    found = find_splits(graph, components)
    if published:
        return min(found, key=seconds)
    in_a_row = contiguous_split(graph, components)
    possible = [in_a_row, *(split for split in found if hops(graph, split) <= MAX_HOPS)]
    limit = WORTH * min(map(seconds, possible))
    return min(
        (split for split in possible if seconds(split) <= limit),
        key=lambda split: (hops(graph, split), seconds(split)),
    )
