"""Carries "which blocks is this tensor made of" through the code between the blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from parasample.bridge.trace.tensors import distinct, tensor_bytes, tensors_in
from parasample.runtime.templates import version

LATENTS = -1  # the source that stands for the denoiser's latents; blocks are 0, 1, ...
Sources = frozenset[int]
# Functions that take a shape, dtype or device from tensors but no values: from all arguments, or all but one.
_READ_NOTHING = ("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor")
_READ_FIRST = ("to", "type_as", "view_as", "expand_as", "reshape_as")


@dataclass
class Found:
    """One block as it ran."""

    name: str
    call: int
    sources: Sources
    output_bytes: int


class InputChangedError(Exception):
    """A leaf wrote into a tensor that it was given; `name` is the leaf."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Provenance(TorchFunctionMode):
    """A mode for one forward; hooks report its blocks (`hooks.Watcher`), which it collects in `found`.

    Tensors are known by identity and held weakly, so that tracing takes no memory.
    """

    def __init__(self, latents: Any) -> None:
        super().__init__()
        self.found: list[Found] = []
        self._sources: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> Sources
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()  # a block's output -> (block, its version)
        self._leaf: tuple[Sources, list[tuple[Tensor, int]]] | None = None
        for tensor in tensors_in(latents):
            self._sources[tensor] = frozenset({LATENTS})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._leaf is not None:
            return func(*args, **kwargs)
        given = distinct((args, kwargs))
        versions = [version(tensor) for tensor in given]
        result = func(*args, **kwargs)
        sources = self._union(_read(getattr(func, "__name__", ""), given))
        for tensor, before in zip(given, versions, strict=True):
            if version(tensor) != before:
                self._change(tensor, sources)
        for tensor in tensors_in(result):
            self._sources[tensor] = sources
        return result

    def enter_leaf(self, name: str, call: int, arguments: Any) -> None:
        given = distinct(arguments)
        watched = [(tensor, version(tensor)) for tensor in given]
        self._leaf = (self._union(given), watched)

    def leave_leaf(self, name: str, call: int, output: Any) -> None:
        assert self._leaf is not None
        sources, watched = self._leaf
        made = distinct(output)
        changed = [tensor for tensor, was in watched if version(tensor) != was]
        self._leaf = None
        if any(not any(tensor is other for other in made) for tensor in changed):
            raise InputChangedError(name)
        self._add(Found(name, call, sources, tensor_bytes(made)), made)

    def leave_expanded(self, name: str, call: int, output: Any) -> None:
        made = distinct(output)
        untouched = [self._made.get(tensor) for tensor in made]
        handed_on = all(known and known[1] == version(t) for known, t in zip(untouched, made, strict=True))
        if handed_on and name:
            sources = frozenset(known[0] for known in untouched)
            self._add(Found(name, call, sources, 0), [])
        else:
            self._add(Found(name, call, self._union(made), tensor_bytes(made)), made)

    def _add(self, found: Found, made: Iterable[Tensor]) -> None:
        index = len(self.found)
        self.found.append(found)
        for tensor in made:
            self._sources[tensor] = frozenset({index})
            self._made[tensor] = (index, version(tensor))

    def _union(self, tensors: Iterable[Tensor]) -> Sources:
        return frozenset().union(*(self._sources.get(tensor, frozenset()) for tensor in tensors))

    def _change(self, changed: Tensor, sources: Sources) -> None:
        """An in-place change reaches every tensor that shares the memory."""
        memory = changed.untyped_storage()._cdata
        for tensor, known in list(self._sources.items()):
            if tensor.untyped_storage()._cdata == memory:
                self._sources[tensor] = known | sources


def _read(function: str, given: list[Tensor]) -> list[Tensor]:
    """The tensors whose values a torch function's result depends on."""
    if function in _READ_NOTHING or function.endswith("_like"):
        return []
    return given[:1] if function in _READ_FIRST else given
