"""What ranks agree on before they exchange anything: the same call, and that none of them failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from parasample.config import Async
from parasample.errors import TransportError
from parasample.runtime.transports import Ranks, bits_of

if TYPE_CHECKING:
    from parasample.bridge.depth.denoiser import DepthDenoiser

T = TypeVar("T")


def on_every_rank(ranks: Ranks, make: Callable[[], T]) -> T:
    """What `make` returns here, if it fails nowhere. Collective; `make` itself must not be.

    Raises:
        TransportError: where it failed on another rank only. Where it failed here, its own error.
    """
    if ranks.size == 1:
        return make()
    made: list[T] = []
    fault: Exception | None = None
    try:
        made.append(make())
    except Exception as error:
        fault = error
    failed = ranks.all_gather(torch.tensor([fault is not None], dtype=torch.uint8)).tolist()
    if fault is not None:
        raise fault
    if any(failed):
        raise TransportError(
            f"rank {failed.index(1)} of {ranks.size} failed in the first step, so that rank {ranks.rank} "
            "cannot go on; look at its output"
        )
    return made[0]


def require_same_call(
    ranks: Ranks, denoiser: DepthDenoiser, arguments: dict[str, Any], timesteps: Tensor | None, config: Async
) -> None:
    """Raise ConfigError on every rank unless all of them make the same call.

    `timesteps` are those of the run at its first call, None after it.
    """
    if ranks.size == 1:
        return
    if timesteps is not None:
        ranks.require_same("the method", text_bits(repr(config)))
        ranks.require_same("the schedule", timesteps.double())
    latents = arguments[denoiser.latents_name]
    changed = torch.tensor([denoiser.changed], dtype=torch.uint8)
    ranks.require_same("whether the denoiser's modules were changed since the last call", changed)
    ranks.require_same("the shape of the latents", text_bits(f"{latents.shape} {latents.dtype}".ljust(80)))
    ranks.require_same("the tensor of latents", latents)
    rest = tree_leaves({name: value for name, value in arguments.items() if name != denoiser.latents_name})
    tensors = [leaf for leaf in rest if isinstance(leaf, Tensor)]
    content = [bits_of(leaf) for leaf in tensors if leaf.numel()]
    shapes = text_bits(repr([(leaf.shape, leaf.dtype) for leaf in tensors]))
    ranks.require_same("the prompt or other conditioning", torch.cat([shapes, *content]))


def text_bits(text: str) -> Tensor:
    """A text as a tensor that ranks can compare."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
