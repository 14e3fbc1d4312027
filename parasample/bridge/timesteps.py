"""Timesteps that remember what a pipeline does to them on their way to the denoiser.

A pipeline loops `for i, t in enumerate(timesteps)` and hands the denoiser some function of t: t itself, t /
1000, a batch of copies in another dtype. A round evaluates many steps at once and needs that function at
each of them. So the loop is given `TracedTimestep`s: tensors that record the operations applied to them, to
be replayed for every other step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map


class TracedTimestep(torch.Tensor):
    """A timestep, or something computed from it; `replay(t)` computes the same from another timestep."""

    replay: Callable[[Tensor], Any]
    span: tuple[int, int]  # the [start, stop) of scheduler.timesteps that the loop runs over
    index: int  # type: ignore[assignment]  # position in scheduler.timesteps

    @staticmethod
    def wrap(
        value: Tensor, replay: Callable[[Tensor], Any], span: tuple[int, int], index: int
    ) -> TracedTimestep:
        traced = value.as_subclass(TracedTimestep)
        traced.replay, traced.span, traced.index = replay, span, index
        return traced

    def plain(self) -> Tensor:
        return self.as_subclass(torch.Tensor)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or func is torch.Tensor.as_subclass:
            return result
        source = next(
            a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, TracedTimestep)
        )

        def replay(timestep: Tensor) -> Any:
            new_args, new_kwargs = tree_map(
                lambda a: a.replay(timestep) if isinstance(a, TracedTimestep) else a, (args, kwargs)
            )
            return func(*new_args, **new_kwargs)

        return cls.wrap(result, replay, source.span, source.index)


class TimestepSequence(torch.Tensor):
    """A scheduler's `timesteps` (or a slice) whose iteration yields `TracedTimestep`s; else plain."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    start: int

    @staticmethod
    def wrap(timesteps: Tensor, start: int = 0) -> TimestepSequence:
        sequence = timesteps.as_subclass(TimestepSequence)
        sequence.start = start
        return sequence

    def __iter__(self) -> Iterator[TracedTimestep]:
        plain = self.as_subclass(torch.Tensor)
        span = (self.start, self.start + len(plain))
        for position, value in enumerate(plain):
            yield TracedTimestep.wrap(value, lambda t: t, span, self.start + position)

    def __getitem__(self, key: Any) -> Tensor:
        plain = self.as_subclass(torch.Tensor)
        if isinstance(key, slice) and key.step in (None, 1):
            first, _, _ = key.indices(len(plain))
            return TimestepSequence.wrap(plain[key], self.start + first)
        return plain[key]

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return TimestepSequence.wrap(self.as_subclass(torch.Tensor).to(*args, **kwargs), self.start)


def untraced(leaf: Any) -> Any:
    """An ordinary tensor for a traced timestep, anything else as it is."""
    return leaf.plain() if isinstance(leaf, TracedTimestep) else leaf


def has_traced(tree: Any) -> bool:
    """Whether a nested argument holds a traced timestep."""
    if isinstance(tree, dict) and any(isinstance(value, TracedTimestep) for value in tree.values()):
        return True  # the usual place, found without walking the rest
    return bool(tree_any(lambda leaf: isinstance(leaf, TracedTimestep), tree))
