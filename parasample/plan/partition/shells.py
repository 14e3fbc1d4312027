"""The best nested split: components peeled off a denoiser from its two ends, by dynamic programming.

The blocks stand in a row. A component takes some from the left end of what is left, some from the right end,
or both; the last takes the middle. Taking from one end only gives contiguous splits; taking from both gives
shells, which keep a U-Net's skip connections inside of one component. The bytes that a component receives
depend on its own blocks alone, so that the sum over components is minimised exactly.
"""

from __future__ import annotations

from functools import cache
from math import inf

from parasample.plan.partition.core import Core

Plan = tuple[float, tuple[tuple[int, int], ...]]  # bytes, and where each component's middle begins and ends


def nested_split(
    core: Core, components: int, max_share: float, max_weight: float, max_units: int
) -> list[int] | None:
    """[m] components of least bytes, none above `max_share` of the cost or `max_weight` of the weights; None
    if there are none.

    Neighbours are taken together until `max_units` are left, so that the time taken is bounded.
    """
    starts = _units(core, max_units)  # [u + 1] where each unit begins
    count = len(starts) - 1
    before = [sum(core.shares[:start]) for start in starts]  # share of all units before one
    heavy = [sum(core.weights[:start]) for start in starts]  # weights of all units before one
    masks, reads = _interval_masks(core, starts)
    of_size = {size: sum(1 << at for at, own in enumerate(core.sizes) if own == size) for size in core.sizes}

    def received(begin: int, inner: int, outer: int, end: int) -> int:
        foreign = (reads[begin][inner] | reads[outer][end]) & ~(masks[begin][inner] | masks[outer][end])
        return sum(size * (foreign & blocks).bit_count() for size, blocks in of_size.items())

    @cache
    def best(begin: int, end: int, parts: int) -> Plan:
        share, weight = before[end] - before[begin], heavy[end] - heavy[begin]
        if parts == 1:
            fits = share <= max_share and weight <= max_weight
            return (received(begin, end, end, end), ()) if fits else (inf, ())
        found: Plan = (inf, ())
        for inner in range(begin, end):
            taken, laden = before[inner] - before[begin], heavy[inner] - heavy[begin]
            if taken > max_share or laden > max_weight:
                break
            for outer in range(end, inner, -1):
                peeled = taken + before[end] - before[outer]
                load = laden + heavy[end] - heavy[outer]
                if peeled > max_share or load > max_weight:
                    break
                if share - peeled > max_share * (parts - 1) or peeled == 0:
                    continue
                if weight - load > max_weight * (parts - 1):
                    continue
                cost = received(begin, inner, outer, end)
                if cost >= found[0]:
                    continue
                rest, cuts = best(inner, outer, parts - 1)
                if cost + rest < found[0]:
                    found = (cost + rest, ((inner, outer), *cuts))
        return found

    total, cuts = best(0, count, components)
    if total == inf:
        return None
    assigned = [0] * len(core.blocks)
    for component, (inner, outer) in enumerate(cuts, start=1):
        begin, end = starts[inner], starts[outer]
        assigned[begin:end] = [component] * (end - begin)
    return assigned


def _units(core: Core, max_units: int) -> list[int]:
    """Where units begin, and the end. Neighbours are joined, first those cheap to compute, costly to part."""
    starts = list(range(len(core.blocks) + 1))
    shares = list(core.shares)
    crossing = [0] * len(starts)  # bytes that blocks from one on read of those before it
    for at, readers in enumerate(core.readers):
        for cut in range(at + 1, max(readers, default=at) + 1):
            crossing[cut] += core.sizes[at]
    while len(shares) > max_units:
        at = min(
            range(len(shares) - 1),
            key=lambda i: (shares[i] + shares[i + 1] + 1e-4) / (1 + crossing[starts[i + 1]]),
        )
        shares[at : at + 2] = [shares[at] + shares[at + 1]]
        del starts[at + 1]
    return starts


def _interval_masks(core: Core, starts: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """By first unit and end [u + 1][u + 1]: the blocks of an interval, and the blocks they read, as bits."""
    count = len(starts) - 1
    masks = [[0] * (count + 1) for _ in range(count + 1)]
    reads = [[0] * (count + 1) for _ in range(count + 1)]
    for begin in range(count):
        mask = read = 0
        for end in range(begin + 1, count + 1):
            for at in range(starts[end - 1], starts[end]):
                mask |= 1 << at
                for source in core.inputs[at]:
                    read |= 1 << source
            masks[begin][end], reads[begin][end] = mask, read
    return masks, reads
