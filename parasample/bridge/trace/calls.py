"""Who calls whom in one forward, and which of the called modules become blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from parasample.runtime.forward import compiled

# What torch's table of formulas leaves out: attention as it runs on a CPU and on other backends.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: sdpa_flop,
}
# Code between an expanded module's blocks runs on every device: it must be next to nothing.
_INSIDE_BLOCKS = 0.95


@dataclass
class Call:
    """One call of one module: its path, the floating point operations of all of it, and the calls it made."""

    name: str
    flops: int = 0
    children: list[Call] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """Paths of the modules that are blocks as a whole, and of those whose exit is a block."""

    leaves: frozenset[str]
    expanded: frozenset[str]


@contextmanager
def counted_flops() -> Iterator[Callable[[], int]]:
    """Counts matrix products, convolutions and attention; yields the count so far."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        yield counter.get_total_flops


def record_calls(denoiser: nn.Module, forward: Callable[[], Any]) -> Call:
    """The tree of calls of one `forward()` of the denoiser; its root is the denoiser itself."""
    stack = [Call("above")]
    handles = []

    with counted_flops() as flops:
        for name, module in denoiser.named_modules():

            def enter(*_: Any, name: str = name) -> None:
                call = Call(name, -flops())
                stack[-1].children.append(call)
                stack.append(call)

            def leave(*_: Any) -> None:
                stack.pop().flops += flops()

            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            forward()
        finally:
            for handle in handles:
                handle.remove()
    return stack[0].children[0]


def choose(root: Call, denoiser: nn.Module, sealed: Collection[str], max_share: float) -> Choice:
    """Which modules to expand, from the denoiser downwards, and which to keep whole.

    A module is expanded if it holds a list of modules that are themselves made of several (a list of residual
    blocks, of transformer layers), or if it costs more than `max_share` of the denoiser; but only where
    nearly all of its cost is in the modules that it calls, and never when it is `sealed`, or compiled, which
    it could not stay. A module that
    has no weights and does no arithmetic to speak of is part of the code around it.
    """
    modules = dict(denoiser.named_modules())
    weighted = {name for name, module in modules.items() if _has_weights(module)}
    leaves: set[str] = set()
    expanded = {root.name}

    def parts(call: Call) -> list[Call]:
        return [child for child in call.children if child.name in weighted or child.flops]

    def divisible(call: Call) -> bool:
        inner = parts(call)
        if (
            not inner
            or call.name in sealed
            or compiled(modules[call.name])
            or sum(part.flops for part in inner) < _INSIDE_BLOCKS * call.flops
        ):
            return False
        if call.flops > max_share * root.flops:
            return True
        return any(_in_list(modules, call.name, part.name) and len(parts(part)) > 1 for part in inner)

    def visit(call: Call) -> None:
        for part in parts(call):
            if divisible(part):
                expanded.add(part.name)
                visit(part)
            else:
                leaves.add(part.name)

    visit(root)
    return Choice(frozenset(leaves), frozenset(expanded - leaves))


def leaf_flops(call: Call, choice: Choice) -> Iterator[int]:
    """Operations of the calls of leaves, in the order in which they run."""
    for child in call.children:
        if child.name in choice.leaves:
            yield child.flops
        else:
            yield from leaf_flops(child, choice)


def _has_weights(module: nn.Module) -> bool:
    return next(chain(module.parameters(), module.buffers()), None) is not None


def _in_list(modules: Mapping[str, nn.Module], caller: str, name: str) -> bool:
    """Whether a called module is an element of a list that its caller holds: `resnets.0` in `mid_block`."""
    holder = name.rpartition(".")[0]
    inside = not caller or holder == caller or holder.startswith(f"{caller}.")
    return inside and isinstance(modules[holder], nn.ModuleList | nn.ModuleDict | nn.Sequential)
