"""Telling whether two schedulers would take the same steps, and remembering what was read off the first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Value = TypeVar("Value")


def fingerprint(
    scheduler: Any, begin_index: int | None, step_kwargs: Mapping[str, Any], dtype: torch.dtype
) -> Hashable:
    """Everything the steps depend on: class, configuration, attributes by value and arguments.

    Attributes that cannot be compared by value (functions, nested solvers) are compared by identity; the key
    then holds them, so that no other object can take their place.
    """
    attributes = {name: value for name, value in vars(scheduler).items() if name != "_step_index"}
    return type(scheduler), begin_index, dtype, _freeze(attributes), _freeze(dict(step_kwargs))


def _freeze(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        return (
            "tensor",
            str(flat.dtype),
            tuple(flat.shape),
            flat.view(torch.uint8).numpy().tobytes() if flat.ndim else flat.item(),
        )
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return "mapping", tuple((str(key), _freeze(value[key])) for key in value)
    if isinstance(value, list | tuple | set | frozenset):
        return type(value).__name__, tuple(map(_freeze, value))
    if isinstance(value, str | bytes | int | float | bool | type(None)):
        return type(value).__name__, value
    return _Identity(value)


class _Identity:
    """Equal to itself only; keeps its object alive."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


class Cache(Generic[Value]):
    """The `size` most recently used values; safe to share between threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.size:
                self._values.popitem(last=False)
