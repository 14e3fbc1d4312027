"""What the outputs of a denoiser's blocks look like: their structure, and the tensors of them that travel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from parasample.errors import UnsupportedPipelineError


class Template:
    """The structure of a block's output, and the tensors of it that travel.

    A module that only hands on what blocks inside it made (skip connections) sends nothing: its readers take
    that from those blocks. Any other block sends every tensor of its output, each once.
    """

    def __init__(self, output: Any, handed_on: Callable[[Tensor], bool]) -> None:
        leaves, self.spec = tree_flatten(output)
        tensors = [(place, leaf) for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        groups: dict[int, list[int]] = {}
        for place, leaf in tensors:
            groups.setdefault(id(leaf), []).append(place)
        self.places = [] if all(handed_on(leaf) for _, leaf in tensors) else list(groups.values())
        self.device = tensors[0][1].device if tensors else torch.device("cpu")
        self.like = [leaf.detach().to("meta") if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._placeholder: Any = None

    def parts(self, output: Any) -> list[Tensor]:
        """The travelling tensors of an output of this structure."""
        leaves = tree_flatten(output)[0]
        return [leaves[places[0]] for places in self.places]

    @property
    def output_like(self) -> Any:
        """An output of this structure made of meta tensors."""
        return tree_unflatten(list(self.like), self.spec)

    @property
    def parts_like(self) -> list[Tensor]:
        """Meta tensors as `parts` gives them."""
        return [self.like[places[0]] for places in self.places]

    def with_parts(self, output: Any, parts: Sequence[Tensor]) -> Any:
        """`output` with other travelling tensors."""
        leaves = tree_flatten(output)[0]
        for places, part in zip(self.places, parts, strict=True):
            for place in places:
                leaves[place] = part
        return tree_unflatten(leaves, self.spec)

    @property
    def placeholder(self) -> Any:
        """An output of this structure whose numbers mean nothing."""
        if self._placeholder is None:
            leaves = [
                torch.zeros_like(leaf, device=self.device) if isinstance(leaf, Tensor) else leaf
                for leaf in self.like
            ]
            self._placeholder = tree_unflatten(leaves, self.spec)
        return self._placeholder

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Shapes and dtypes of the tensors, to compare."""
        return tuple((leaf.shape, leaf.dtype) for leaf in self.like if isinstance(leaf, Tensor))


class Templates:
    """The templates of all blocks for one of the pipeline's calls, recorded while the whole denoiser runs."""

    def __init__(self, num_blocks: int) -> None:
        self.of: list[Template | None] = [None] * num_blocks
        self._made: dict[int, tuple[Tensor, int]] = {}  # held, so that no identity is used twice in a forward

    def record(self, block: int, output: Any) -> None:
        """Note the output of a block that has just run."""
        last = block == len(self.of) - 1
        self.of[block] = template = Template(output, lambda leaf: not last and self._known(leaf))
        for part in template.parts(output):
            self._made[id(part)] = (part, version(part))
        if last:
            self._made = {}

    def _known(self, leaf: Tensor) -> bool:
        """Whether another block made this tensor, unchanged since."""
        made = self._made.get(id(leaf))
        return made is not None and made[1] == version(leaf)

    def put_on(self, device: torch.device) -> None:
        """Say where outputs will lie, if they were recorded elsewhere."""
        for template in self.of:
            if template is not None:
                template.device = device

    def __getitem__(self, block: int) -> Template:
        template = self.of[block]
        if template is None:
            raise UnsupportedPipelineError(
                f"block {block} of the split ran now but not in this call's first step; sample this pipeline "
                "sequentially, or restore it and parallelize again"
            )
        return template


def version(tensor: Tensor) -> int:
    """Counts in-place changes; inference tensors do not count them."""
    return 0 if tensor.is_inference() else tensor._version
