"""Notice when a pipeline conditions a step otherwise than the step before.

States are evaluated steps ahead, with the conditioning of the step at hand. If that changes on the way (a
callback swaps the prompt, a ControlNet is switched off halfway), what was evaluated ahead no longer holds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from parasample.bridge.timesteps import TracedTimestep
from parasample.runtime.templates import version

_MISSING = object()


class ConditioningWatch:
    """What a call to a denoiser was given last, but for latents and timesteps."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Any, int]] = {}
        self._fresh: set[str] = set()  # arguments made anew for every step
        self._shallow: dict[str, tuple[Any, int]] | None = None

    def changed(self, call: Mapping[str, Any], ignored: Collection[str], follows: bool) -> bool:
        """Whether `call` differs from the last one in any argument not `ignored`; remembers it.

        `follows`: an earlier call of the same step may have made some of these tensors (a ControlNet's
        residuals). Those are made anew for every step, and are not conditioning.
        """
        shallow = {name: (value, _counted(value)) for name, value in call.items() if name not in ignored}
        before, self._shallow = self._shallow, shallow
        if before is not None and _same_objects(shallow, before):
            return False  # the usual case, told without walking nested arguments
        first, found = not self._last, False
        for path, leaf in tree_flatten_with_path({k: v for k, v in call.items() if k not in ignored})[0]:
            where = keystr(path)
            known, counted = self._last.get(where, (_MISSING, 0))
            if isinstance(leaf, TracedTimestep):
                continue
            if isinstance(leaf, Tensor):
                made_anew = leaf is not known
                same = not made_anew and version(leaf) == counted
                same = same or (made_anew and _equal(leaf, known))
                derived = follows and made_anew and (where in self._fresh or known is _MISSING)
                if made_anew:
                    self._fresh.add(where)
                self._last[where] = (leaf, version(leaf))
                found = found or not (same or derived)
            elif isinstance(leaf, bool | int | float | str | None):
                found = found or leaf != known
                self._last[where] = (leaf, 0)
        return found and not first


def _counted(value: Any) -> int:
    """In-place changes of a tensor; -1 for what can change unseen (nested arguments)."""
    if isinstance(value, Tensor):
        return version(value)
    return 0 if isinstance(value, bool | int | float | str | None) else -1


def _same_objects(call: Mapping[str, tuple[Any, int]], before: Mapping[str, tuple[Any, int]]) -> bool:
    return call.keys() == before.keys() and all(
        value is before[name][0] and counted == before[name][1] and counted >= 0
        for name, (value, counted) in call.items()
    )


def _equal(tensor: Tensor, known: Any) -> bool:
    return isinstance(known, Tensor) and tensor.shape == known.shape and torch.equal(tensor, known)


def pipeline_numbers(pipe: Any) -> dict[str, float]:
    """A pipeline's own settings of the running call, such as guidance scales, which callbacks may change."""
    return {
        name: value
        for name, value in vars(pipe).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "timestep" not in name
    }
