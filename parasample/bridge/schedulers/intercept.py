"""Standing in for the two things a scheduler does that are not affine: drawing noise and clipping.

While a scheduler is probed with basis vectors, its noise draws and its clips of a whole sample are answered
by fresh basis vectors. A `TorchFunctionMode` does it: it sees every torch call of this thread and of no
other, so nothing is patched and another thread may sample meanwhile.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CLAMPS = {
    torch.clamp,
    torch.clip,
    torch.Tensor.clamp,
    torch.Tensor.clamp_,
    torch.Tensor.clip,
    torch.Tensor.clip_,
}


class Unreadable(Exception):
    """Why a scheduler's step is no affine recurrence that we can read; the text is a clause."""


class Intercept(TorchFunctionMode):
    """Answers `torch.randn` and full-size clamps inside a `with` block.

    Args:
        shape: of the probing vectors; clamps of other tensors (a variance, a quantile) run as usual.
        on_noise: called with the dtype asked for, returns the draw.
        on_clamp: called with the tensor and the two bounds, returns the clamped tensor; None clamps as usual.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        on_noise: Callable[[torch.dtype], Tensor],
        on_clamp: Callable[[Tensor, Any, Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.on_noise, self.on_clamp = shape, on_noise, on_clamp

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            size = tuple(args[0]) if args and not isinstance(args[0], int) else tuple(args)
            if size != self.shape:
                raise Unreadable(f"it draws noise of shape {size} for a sample of shape {self.shape}")
            return self.on_noise(kwargs.get("dtype") or torch.get_default_dtype())
        if func in _CLAMPS and self.on_clamp is not None and args[0].shape == self.shape:
            low = args[1] if len(args) > 1 else kwargs.get("min")
            high = args[2] if len(args) > 2 else kwargs.get("max")
            return self.on_clamp(args[0], low, high)
        return func(*args, **kwargs)


def working_copy(scheduler: Any, begin_index: int | None) -> Any:
    """A deep copy on the CPU, ready for its first step at `begin_index` (None: where its owner set it).

    The original is left as it was. Tensors come to the CPU because probing vectors are a few numbers long.
    """
    duplicate = copy.deepcopy(scheduler)
    for name, value in vars(duplicate).items():
        if isinstance(value, Tensor) and value.device.type != "cpu":
            vars(duplicate)[name] = value.cpu()
    if hasattr(duplicate, "_step_index"):
        duplicate._step_index = None
    if begin_index is not None and hasattr(duplicate, "_begin_index"):
        duplicate._begin_index = begin_index
    return duplicate


def take_step(
    scheduler: Any, output: Tensor, timestep: Tensor, state: Tensor, step_kwargs: Mapping[str, Any]
) -> Any:
    """One call of the scheduler's `step`; its result has `prev_sample`.

    Raises:
        Unreadable: for whatever a foreign step may raise, and for results of another kind.
    """
    try:
        result = scheduler.step(output, timestep, state, **step_kwargs)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"its step raised {type(error).__name__}: {error}") from error
    if not isinstance(getattr(result, "prev_sample", None), Tensor):
        raise Unreadable(f"its step returns {type(result).__name__}, which has no prev_sample")
    return result
