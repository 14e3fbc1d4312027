"""Run a denoiser with some of its blocks' outputs taken from elsewhere, as one device of several would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from parasample.plan.blocks import BlockGraph


def copied(output: Any, change: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, output)


def nan_like(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else torch.zeros_like(tensor)


@torch.no_grad()
def replay(
    denoiser: nn.Module, args: Any, kwargs: Any, graph: BlockGraph, replace: dict[int, Any]
) -> dict[int, Any]:
    """One forward in which the output of every block in `replace` is what it says; outputs of all blocks.

    A replaced leaf does not run, as far as its result shows; what is above it does.
    """
    indices = {(block.name, block.call): i for i, block in enumerate(graph.blocks)}
    names = {block.name for block in graph.blocks}
    inner = {block.name for block in graph.blocks if block.exit}
    outputs: dict[int, Any] = {}
    calls: Counter[str] = Counter()
    inside = [0]
    handles = []
    for name, module in denoiser.named_modules():
        if name not in names:
            continue

        def enter(*_: Any) -> None:
            inside[0] += 1

        def leave(_module: nn.Module, _args: Any, output: Any, name: str = name) -> Any:
            inside[0] -= name not in inner
            if inside[0]:
                return None
            index = indices[name, calls[name]]
            calls[name] += 1
            if index in replace:
                output = copied(replace[index])
            outputs[index] = copied(output)
            return output

        if name not in inner:
            handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        denoiser(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
