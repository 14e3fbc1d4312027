"""Watches the chosen blocks of a denoiser while it runs, through hooks that are gone afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn

from parasample.bridge.trace.calls import Choice


class Watcher(Protocol):
    """What is told about the blocks; `call` counts the calls of a module in this forward."""

    def enter_leaf(self, name: str, call: int, arguments: Any) -> None: ...
    def leave_leaf(self, name: str, call: int, output: Any) -> None: ...
    def leave_expanded(self, name: str, call: int, output: Any) -> None: ...


@contextmanager
def watched(denoiser: nn.Module, choice: Choice, watcher: Watcher) -> Iterator[None]:
    """Within, every call of a chosen module is reported; calls inside of a leaf are not."""
    hooks = _Hooks(watcher)
    handles = []
    for name, module in denoiser.named_modules():
        if name in choice.leaves:
            handles.append(module.register_forward_pre_hook(hooks.enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(hooks.leave(name)))
        elif name in choice.expanded:
            handles.append(module.register_forward_hook(hooks.leave_expanded(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Hooks:
    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._depth = 0  # leaves entered and not yet left; above 1 inside of a leaf
        self._calls: Counter[str] = Counter()

    def enter(self, name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._depth += 1
            if self._depth == 1:
                self._watcher.enter_leaf(name, self._calls[name], (args, kwargs))

        return hook

    def leave(self, name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            self._depth -= 1
            if self._depth == 0:
                self._watcher.leave_leaf(name, self._calls[name], output)
                self._calls[name] += 1

        return hook

    def leave_expanded(self, name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if self._depth == 0:
                self._watcher.leave_expanded(name, self._calls[name], output)
                self._calls[name] += 1

        return hook
