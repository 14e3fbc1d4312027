"""Block graphs small enough to reason about."""

from __future__ import annotations

from typing import Any

from parasample.plan.blocks import Block, BlockGraph


def block(name: str, cost: float, inputs: tuple[int, ...], size: int, **more: Any) -> Block:
    return Block(name, 0, cost, inputs, size, more.pop("weights", 0), more.pop("everywhere", False), **more)


def small_unet(depth: int = 3, layers: int = 1) -> BlockGraph:
    """conv_in, `depth` levels down and up with skip connections and outputs that shrink, conv_out."""
    blocks = [block("time", 0, (), 4, everywhere=True), block("conv_in", 0.1, (), 1024)]
    tops = []
    for level in range(depth):
        for layer in range(layers):
            inputs = (0, len(blocks) - 1)
            blocks.append(block(f"down.{level}.{layer}", 10, inputs, 1024 >> level, weights=10))
        tops.append(len(blocks) - 1)
    blocks.append(block("down", 0, tuple(tops), 0, exit=True))
    last = tops[-1]
    for level in reversed(range(depth)):
        for layer in range(layers):
            inputs = (0, last, *([tops[level]] if layer == 0 and tops[level] != last else []))
            blocks.append(block(f"up.{level}.{layer}", 10, tuple(sorted(inputs)), 1024 >> level, weights=10))
            last = len(blocks) - 1
    blocks.append(block("conv_out", 0.1, (1, last), 64))
    blocks.append(block("", 0, (len(blocks) - 1,), 64, exit=True))
    return BlockGraph(tuple(blocks))


def chain(costs: list[float]) -> BlockGraph:
    blocks = [block(f"layers.{i}", cost, (i - 1,) if i else (), 100) for i, cost in enumerate(costs)]
    return BlockGraph((*blocks, block("", 0, (len(costs) - 1,), 100, exit=True)))
