"""Tensors inside of the arguments and outputs that modules pass around."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples, sets, mappings and dataclasses, in order, repeats included."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name, None))


def distinct(value: Any) -> list[Tensor]:
    """The tensors in `value`, each object once."""
    return list({id(tensor): tensor for tensor in tensors_in(value)}.values())


def tensor_bytes(tensors: list[Tensor]) -> int:
    """Bytes of the tensors' elements as they would travel, views and expanded dimensions written out."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def on_meta(value: Any) -> Any:
    """`value` with every tensor replaced by one on the meta device: shape, strides and dtype, no data."""
    move: Callable[[Any], Any] = lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf  # noqa: E731
    with torch.no_grad():
        return tree_map(move, value)
