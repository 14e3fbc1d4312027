"""Who computes which block of a denoiser: its data flow, a split that all ranks share, and its blocks in
hand.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from parasample.bridge.depth.agreement import on_every_rank, text_bits
from parasample.bridge.trace import trace
from parasample.bridge.trace.tensors import on_meta
from parasample.config import Async
from parasample.errors import ConfigError, UnsupportedPipelineError
from parasample.plan.blocks import BlockGraph
from parasample.plan.partition import (
    NOISY_HOPS,
    QUIET_HOPS,
    Split,
    choose_split,
    explicit_split,
    possible_splits,
)
from parasample.runtime.sharding import ShardedWeights
from parasample.runtime.split_denoiser import SplitDenoiser
from parasample.runtime.templates import Templates
from parasample.runtime.transports import Ranks


class Cut:
    """A denoiser, traced and split; its blocks report to runners until `remove()`.

    Args:
        denoiser: as the pipeline has it.
        call: the arguments of a call by name, guidance batch included.
        config: says in how many parts, and how.
        ranks: all must make the same call; the first one's measurements decide.
        weights: what is known of the weights, where they are put aside; then operations count, not times.
        noisy: the sampler draws noise, so that latents cannot be predicted far ahead.
        emulated: ranks are played in one process: operations count, so that the split is always the same,
            and the exchange is free.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        call: dict[str, Any],
        config: Async,
        ranks: Ranks,
        weights: ShardedWeights | None = None,
        noisy: bool = False,
        emulated: bool = False,
    ) -> None:
        self.denoiser, self.weights = denoiser, weights
        costs: Literal["time", "flops"] = "flops" if emulated else "time"
        self.graph: BlockGraph = on_every_rank(
            ranks,
            lambda: trace(denoiser, (), call, costs=costs) if weights is None else _trace_meta(weights, call),
        )
        names = repr([(block.name, block.call, block.inputs) for block in self.graph.blocks])
        ranks.require_same("the denoiser's structure", text_bits(names))
        self.split = _of_first_rank(_split(self.graph, config, noisy, emulated), ranks)
        self.blocks = SplitDenoiser(denoiser, self.graph)

    def record(self, templates: Templates, call: dict[str, Any], device: torch.device) -> None:
        """Learn the structure of every block's output for these arguments without any weights.

        Args:
            device: where outputs lie when the denoiser runs.
        """
        assert self.weights is not None
        state, arguments = self.weights.on_meta(), on_meta(call)

        def forward() -> Any:
            return torch.func.functional_call(self.denoiser, state, (), arguments)

        with torch.no_grad():
            self.blocks.record(templates, forward)
        templates.put_on(device)

    def remove(self) -> None:
        """Put every block's own forward back."""
        self.blocks.remove()


def _trace_meta(weights: ShardedWeights, call: dict[str, Any]) -> BlockGraph:
    try:
        return trace(weights.denoiser, (), call, costs="flops", weights=weights.on_meta())
    except (RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedPipelineError(
            f"shard_weights=True needs a {type(weights.denoiser).__name__} that runs on the meta device, and "
            f"this one failed there: {error}; pass shard_weights=False"
        ) from error


def _split(graph: BlockGraph, config: Async, noisy: bool, emulated: bool) -> Split:
    """The user's split, or the best one found."""
    if config.split == "auto":
        splits = possible_splits(graph, config.components, even_weights=config.shard_weights)
        most_hops = NOISY_HOPS if noisy else QUIET_HOPS
        return choose_split(graph, splits, most_hops, *((math.inf, 0.0) if emulated else ()))
    split = explicit_split(graph, config.split)
    if split.components != config.components:
        raise ConfigError(
            f"split names {split.components} components, expected components={config.components}; "
            f"give every component 0..{config.components - 1} a module"
        )
    return split


def _of_first_rank(split: Split, ranks: Ranks) -> Split:
    """The first rank's split on every rank: times are measured, so that searches differ."""
    owns = torch.zeros(len(split.owners), split.components, dtype=torch.uint8)
    for block, owners in enumerate(split.owners):
        owns[block, list(owners)] = 1
    agreed = ranks.all_gather(owns[None])[0].tolist()
    return Split(tuple(tuple(c for c, computes in enumerate(row) if computes) for row in agreed))
