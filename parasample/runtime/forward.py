"""Stand in for a module's `forward`, and take the stand-in out again without a trace."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Call = Callable[..., Any]


class ReplacedForward:
    """Sends a module's calls to `call(*args, **kwargs)` until `remove()`; `original` is what they went to.

    Args:
        module: keeps its class, hooks and parameters; only its `forward` is replaced, on the instance.
        call: gets the arguments of each call.
    """

    def __init__(self, module: nn.Module, call: Call) -> None:
        self.module = module
        self._call = call
        self._had_own_forward = "forward" in module.__dict__
        self.original: Call = module.forward
        self._compiled = module._compiled_call_impl
        if self._compiled is not None:  # `module.compile()`: calls would go past `forward`
            module._compiled_call_impl = None
            self.original = _compiled_alike(self._compiled, self.original)
        self.removed = False
        module.forward = self._enter  # type: ignore[method-assign]

    def _enter(self, *args: Any, **kwargs: Any) -> Any:
        return self.original(*args, **kwargs) if self.removed else self._call(*args, **kwargs)

    def remove(self) -> None:
        """Put the module's own forward back.

        Where somebody has wrapped the module since (another pipeline that shares it, an offload hook), theirs
        stays, and our part in it passes every call through.
        """
        self.removed = True
        if _replacement(self.module.__dict__.get("forward")) is not self:
            return
        below = self
        while (owner := _replacement(below.original)) is not None and owner.removed:
            below = owner
        if below._compiled is not None:
            self.module._compiled_call_impl = below._compiled
        if below._had_own_forward:
            self.module.forward = below.original  # type: ignore[method-assign]
        else:
            self.module.__dict__.pop("forward", None)


def compiled(module: nn.Module) -> bool:
    """Whether a module is compiled as a whole: by `torch.compile(module)` or `module.compile()`."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def _replacement(forward: Any) -> ReplacedForward | None:
    """The replacement whose call a module's forward is, if it is one."""
    owner = getattr(forward, "__self__", None)
    return owner if isinstance(owner, ReplacedForward) else None


def _compiled_alike(compiled: Call, forward: Call) -> Call:
    """`forward`, compiled with the options of another compiled callable, or torch's where it hides them."""
    context = inspect.getclosurevars(compiled).nonlocals.get("self") if inspect.isfunction(compiled) else None
    return context(forward) if callable(context) else torch.compile(forward)
