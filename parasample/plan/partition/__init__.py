"""Cuts a block graph into components, one per device of the depth axis.

split.py says what a split is and what it costs, find.py searches, contiguous.py cuts the row of blocks,
choose.py takes one of those, explicit.py reads one by module names, stages.py cuts components further.
"""

from parasample.plan.partition.choose import NOISY_HOPS, QUIET_HOPS, choose_split, possible_splits
from parasample.plan.partition.contiguous import contiguous_split
from parasample.plan.partition.explicit import explicit_split
from parasample.plan.partition.find import find_split, find_splits, predict_step_seconds
from parasample.plan.partition.split import (
    Split,
    SplitReport,
    Transfer,
    broadcast_bytes,
    computed_blocks,
    report,
    transfers,
)

__all__ = [
    "NOISY_HOPS",
    "QUIET_HOPS",
    "Split",
    "SplitReport",
    "Transfer",
    "broadcast_bytes",
    "choose_split",
    "computed_blocks",
    "contiguous_split",
    "explicit_split",
    "find_split",
    "find_splits",
    "possible_splits",
    "predict_step_seconds",
    "report",
    "transfers",
]
