"""Splits whose components follow one another: each a run of blocks in the order in which they are
computed.
"""

from __future__ import annotations

import math
from itertools import accumulate

from parasample.errors import ConfigError
from parasample.plan.blocks import BlockGraph
from parasample.plan.partition.core import Core, core_of, split_of, weight_limits
from parasample.plan.partition.split import Split

# How much above the most even largest share a split may be to send less.
SLACK = 1.03


def contiguous_split(graph: BlockGraph, components: int, max_weight: float = math.inf) -> Split:
    """The most even split into runs of blocks, and of those about as even the one that sends the least.

    `max_weight`: share of all weights that a component may have, if there is such a split; else as little
    more as there must be.

    Raises:
        ConfigError: if there are fewer blocks than components.
    """
    core = core_of(graph)
    if not 1 <= components <= len(core.blocks):
        raise ConfigError(f"components={components} is outside 1..{len(core.blocks)}, the blocks; pass fewer")
    crossing = _crossing_bytes(core)
    for limit in weight_limits(core, max_weight):
        cuts = _cuts(core, components, [0] * len(crossing), math.inf, limit, even=True)
        if cuts:
            evenest = max(_shares(core, cuts))
            cuts = _cuts(core, components, crossing, evenest * SLACK, limit, even=False)
            break
    assigned = [sum(at >= cut for cut in cuts[1:-1]) for at in range(len(core.blocks))]
    return split_of(graph, core, assigned)


def _crossing_bytes(core: Core) -> list[int]:
    """[m + 1] bytes of blocks before each position that blocks from there on read."""
    crossing = [0] * (len(core.blocks) + 1)
    for at, readers in enumerate(core.readers):
        for position in range(at + 1, max(readers, default=at) + 1):
            crossing[position] += core.sizes[at]
    return crossing


def _cuts(
    core: Core, components: int, price: list[int], max_share: float, max_weight: float, even: bool
) -> list[int]:
    """[N + 1] first positions of the components, and m: the least largest share if `even`, else the least
    price. Empty if there are none within the limits.
    """
    count = len(core.blocks)
    total, heavy = [0.0, *accumulate(core.shares)], [0.0, *accumulate(core.weights)]
    # best[k][p]: of k components over the first p blocks; came[k][p]: where the last of them begins.
    best = [[math.inf] * (count + 1) for _ in range(components + 1)]
    came = [[0] * (count + 1) for _ in range(components + 1)]
    best[0][0] = 0.0
    for k in range(1, components + 1):
        for end in range(k, count - components + k + 1):
            for begin in range(k - 1, end):
                share = total[end] - total[begin]
                if share > max_share + 1e-9 or heavy[end] - heavy[begin] > max_weight + 1e-9:
                    continue
                if best[k - 1][begin] == math.inf:
                    continue
                value = max(best[k - 1][begin], share) if even else best[k - 1][begin] + price[begin]
                if value < best[k][end]:
                    best[k][end], came[k][end] = value, begin
    if best[components][count] == math.inf:
        return []
    cuts = [count]
    for k in range(components, 0, -1):
        cuts.insert(0, came[k][cuts[0]])
    return cuts


def _shares(core: Core, cuts: list[int]) -> list[float]:
    return [sum(core.shares[begin:end]) for begin, end in zip(cuts[:-1], cuts[1:], strict=True)]
