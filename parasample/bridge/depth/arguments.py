"""The arguments of a denoiser's call: as the pipeline gave them, or for another step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from parasample.bridge.denoiser import TIMESTEP_ARGUMENTS
from parasample.bridge.timesteps import TracedTimestep, untraced
from parasample.errors import UnsupportedPipelineError

if TYPE_CHECKING:
    from parasample.bridge.depth.denoiser import DepthDenoiser


def plain(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, with timesteps as ordinary tensors."""
    return {name: tree_map(untraced, value) for name, value in call.items()}


def at_step(
    call: dict[str, Any], denoiser: DepthDenoiser, timesteps: Tensor, here: int, step: int
) -> dict[str, Any]:
    """The arguments of a call of step `here` as they would be at the timestep of `step`, latents untouched.

    Raises:
        UnsupportedPipelineError: where the timestep was computed outside of torch, so that it is not known
        how.
    """

    def replayed(leaf: Any) -> Any:
        return leaf.replay(timesteps[step].clone()) if isinstance(leaf, TracedTimestep) else leaf

    arguments = {}
    for name, value in call.items():
        arguments[name] = tree_map(replayed, value)
        if name in TIMESTEP_ARGUMENTS and value is not None and not isinstance(value, TracedTimestep):
            given, expected = torch.as_tensor(value), timesteps[here]
            if not bool((given == expected.to(given)).all()):
                raise UnsupportedPipelineError(
                    f"{denoiser.name}: expected timestep {float(expected):g} at step {here}, found "
                    f"{float(given.reshape(-1)[0]):g}, computed outside of torch; sample this pipeline "
                    "sequentially"
                )
            arguments[name] = timesteps[step].to(given).expand(given.shape)
    return arguments


def structure(call: dict[str, Any]) -> str:
    """What the structure of a denoiser's outputs depends on: shapes, dtypes and plain values."""
    leaves, spec = tree_flatten(call)
    kinds = [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return repr((spec, kinds))


def with_states(latents: Tensor, states: Tensor) -> Tensor:
    """`latents` [copies * B, C + more, ...] with states [B, C, ...] in place of the first C channels."""
    copies = latents.shape[0] // states.shape[0]
    repeated = states.to(latents.dtype).repeat(copies, *(1,) * (states.ndim - 1))
    if latents.shape[1] == states.shape[1]:
        return repeated
    return torch.cat([repeated, latents[:, states.shape[1] :]], dim=1)
