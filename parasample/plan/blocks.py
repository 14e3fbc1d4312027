"""A denoiser's data flow as plain numbers: which block reads which, what each costs and what would travel.

A block is one call of a module. Either the module runs as a whole (a leaf), or it is expanded: its children
are blocks of their own, and the block that bears its name is its exit, the output that its own code makes of
theirs. (A residual sum at the end of an expanded module is thus one block and travels as one tensor.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from parasample.errors import ConfigError

Unit = Literal["seconds", "flops"]


@dataclass(frozen=True)
class Block:
    """One call of one module.

    Attributes:
        name: path of the module inside the denoiser, "up_blocks.1.resnets.0"; "" is the denoiser itself.
        call: 0 for the first call of that module in one forward, 1 for the second, and so on.
        cost: in the graph's unit; only ratios matter. 0 for an exit.
        inputs: ascending indices of the blocks whose outputs it reads, with no other block in between.
        output_bytes: of its output tensors. 0 for an exit that hands on tensors of other blocks untouched:
            its readers then name those blocks instead.
        weight_bytes: parameters and buffers, counted once over all blocks; an exit has those of its module
            that no block inside has.
        everywhere: it depends on no latents and costs little, so that every device computes it.
        exit: it is the exit of an expanded module. (Names alone do not tell: a model may call a module that
            lies inside of a leaf by itself as well, as DiT does for its first block's embedding.)
    """

    name: str
    call: int
    cost: float
    inputs: tuple[int, ...]
    output_bytes: int
    weight_bytes: int
    everywhere: bool
    exit: bool = False

    @property
    def label(self) -> str:
        """How messages name it: `mid_block.resnets.0`, or `proj#1` for the second call of `proj`."""
        return (self.name or "the output") + (f"#{self.call}" if self.call else "")

    @property
    def hands_on(self) -> bool:
        """Whether it is an exit that hands on tensors of other blocks untouched: it needs none of them."""
        return self.exit and self.output_bytes == 0 and self.name != ""


@dataclass(frozen=True)
class BlockGraph:
    """All blocks of one forward in order of completion; the last is the denoiser's output.

    Attributes:
        blocks: [n], `Block.inputs` point at earlier ones.
        unit: what `Block.cost` counts.

    Raises:
        ConfigError: when a block is listed twice, reads itself or a later block, has a negative or infinite
            figure, is everywhere but reads a block that is not, or the last block is not the output.
    """

    blocks: tuple[Block, ...]
    unit: Unit = "seconds"

    def __post_init__(self) -> None:
        if self.unit not in ("seconds", "flops"):
            raise ConfigError(f'unit={self.unit!r} is unknown; pass "seconds" or "flops"')
        if not self.blocks or self.blocks[-1].name != "":
            last = self.blocks[-1].name if self.blocks else None
            raise ConfigError(f'the last block is {last!r}; it must be the denoiser\'s output, named ""')
        seen: set[tuple[str, int]] = set()
        for index, block in enumerate(self.blocks):
            if (block.name, block.call) in seen:
                raise ConfigError(f"block {block.label} is listed twice; number its calls 0, 1, ...")
            seen.add((block.name, block.call))
            self._check(index, block)

    def _check(self, index: int, block: Block) -> None:
        if list(block.inputs) != sorted(set(block.inputs)):
            raise ConfigError(
                f"block {block.label} has inputs {block.inputs}; list each once, in ascending order"
            )
        if block.inputs and not (block.inputs[0] >= 0 and block.inputs[-1] < index):
            raise ConfigError(
                f"block {block.label} has inputs {block.inputs}; block {index} can read 0..{index - 1}"
            )
        if not (math.isfinite(block.cost) and block.cost >= 0):
            raise ConfigError(f"block {block.label} costs {block.cost}; pass a finite number of at least 0")
        if min(block.call, block.output_bytes, block.weight_bytes) < 0:
            raise ConfigError(
                f"block {block.label} has a negative call, output_bytes or weight_bytes; pass at least 0"
            )
        foreign = [i for i in block.inputs if block.everywhere and not self.blocks[i].everywhere]
        if foreign:
            raise ConfigError(
                f"block {block.label} is everywhere but reads {self.blocks[foreign[0]].label}, which is not; "
                "mark both or neither"
            )

    def __len__(self) -> int:
        return len(self.blocks)

    @cached_property
    def total_cost(self) -> float:
        """Cost of one forward."""
        return sum(block.cost for block in self.blocks)

    @cached_property
    def total_weight_bytes(self) -> int:
        """Bytes of all parameters and buffers."""
        return sum(block.weight_bytes for block in self.blocks)

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """[n] cost of each block as a share of the whole; all 0 where nothing costs anything."""
        total = self.total_cost
        return tuple(block.cost / total if total else 0.0 for block in self.blocks)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """[n] indices of the blocks that read each block, ascending; exits that only hand it on do not."""
        found: list[list[int]] = [[] for _ in self.blocks]
        for index, block in enumerate(self.blocks):
            for source in () if block.hands_on else block.inputs:
                found[source].append(index)
        return tuple(map(tuple, found))

    def index(self, name: str, call: int = 0) -> int:
        """Position of a block.

        Raises:
            ConfigError: if there is none of that name and call.
        """
        for index, block in enumerate(self.blocks):
            if (block.name, block.call) == (name, call):
                return index
        raise ConfigError(f"no block {name!r} with call {call}; the graph has {len(self)} others")

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers; `from_json` reads them."""
        return {"unit": self.unit, "blocks": [dataclasses.asdict(block) for block in self.blocks]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BlockGraph:
        """The graph that `to_json` wrote.

        Raises:
            ConfigError: if a field is missing or unknown, or the graph is none.
        """
        try:
            blocks = tuple(Block(**{**row, "inputs": tuple(row["inputs"])}) for row in data["blocks"])
            return cls(blocks, data["unit"])
        except (KeyError, TypeError) as error:
            raise ConfigError(f"not a block graph as `to_json` writes it: {error}; trace it again") from None


__all__ = ["Block", "BlockGraph", "Unit"]
