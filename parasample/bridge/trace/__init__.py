"""The data flow of any denoiser, read off one instrumented forward: no table of models.

    graph = trace(unet, (latents, timestep, prompt_embeds), {"return_dict": False})

Files: calls.py chooses the blocks, provenance.py finds what each reads, clock.py what each costs.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from parasample.bridge.trace.calls import Call, Choice, choose, leaf_flops, record_calls
from parasample.bridge.trace.clock import Key, leaf_seconds
from parasample.bridge.trace.hooks import watched
from parasample.bridge.trace.provenance import LATENTS, Found, InputChangedError, Provenance
from parasample.bridge.trace.tensors import on_meta, tensor_bytes
from parasample.errors import ConfigError, UnsupportedPipelineError
from parasample.plan.blocks import Block, BlockGraph

Costs = Literal["time", "flops"]
# A module above this share of the cost is expanded: with more devices than that nobody could balance it.
MAX_SHARE = 1 / 16
# What costs more than this is worth sending even if it depends on no latents.
EVERYWHERE_SHARE = 0.02

log = logging.getLogger(__name__)


@torch.no_grad()
def trace(
    denoiser: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    costs: Costs = "time",
    repeats: int = 3,
    max_share: float = MAX_SHARE,
    weights: Mapping[str, Tensor] | None = None,
) -> BlockGraph:
    """Run the denoiser on these arguments and return its blocks, what they read and what they cost.

    The data flow is found on the meta device, which needs neither memory nor a device's time, and the same on
    every rank; where the model cannot run there, on its own device. Nothing of the denoiser is changed.

    Args:
        denoiser: any module; its first argument is taken for the latents, all others for conditioning.
        args, kwargs: as the pipeline passes them, guidance batch included.
        costs: "time" measures seconds on the denoiser's device, "flops" counts operations.
        repeats: timed forwards, of which the fastest counts, block by block.
        max_share: a module above this share of all operations is split into those that it calls.
        weights: meta tensors in place of the parameters and buffers, by name; for costs="flops" of a denoiser
            that has none in hand.

    Raises:
        ConfigError: for "time" on the meta device, or an unknown `costs`.
        UnsupportedPipelineError: if a block changes an argument in place and cannot be joined to its caller.
    """
    if costs not in ("time", "flops"):
        raise ConfigError(f'costs={costs!r} is unknown; pass "time" or "flops"')
    device = next((t.device for t in chain(denoiser.parameters(), denoiser.buffers())), torch.device("cpu"))
    if costs == "time" and device.type == "meta":
        raise ConfigError('nothing can be timed on the meta device; pass costs="flops"')
    kwargs = dict(kwargs or {})

    def own_forward() -> Any:
        return denoiser(*args, **kwargs)

    latents = _latents(denoiser, args, kwargs)
    with torch.compiler.set_stance("force_eager"):  # the data flow of compiled blocks is read uncompiled
        try:
            meta_args, meta_kwargs = on_meta((args, kwargs))
            forward = _meta_forward(denoiser, meta_args, meta_kwargs, weights)
            root = record_calls(denoiser, forward)
            latents = _latents(denoiser, meta_args, meta_kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            if device.type == "meta" or weights is not None:
                raise
            log.debug("tracing on %s, not on the meta device: %s", device, error)
            forward = own_forward
            root = record_calls(denoiser, forward)
        choice, found = _find(denoiser, forward, latents, root, max_share)
    counted = leaf_flops(root, choice)
    flops = [0 if block.name in choice.expanded else next(counted) for block in found]
    seconds = None if costs == "flops" else leaf_seconds(denoiser, choice, own_forward, device, repeats)
    stored = _weight_bytes(weights or _named_tensors(denoiser), choice)
    return _graph(choice, found, flops, seconds, stored)


def _meta_forward(
    denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], weights: Mapping[str, Tensor] | None
) -> Callable[[], Any]:
    """A forward with every parameter and buffer on the meta device; the denoiser keeps its own."""
    own = _named_tensors(denoiser) if weights is None else weights
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in own.items()}
    return lambda: torch.func.functional_call(denoiser, state, args, kwargs)


def _named_tensors(denoiser: nn.Module) -> dict[str, Tensor]:
    return dict(chain(denoiser.named_parameters(), denoiser.named_buffers()))


def _latents(denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if args:
        return args[0]
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    return next((kwargs[name] for name in names if name in kwargs), None)


def _find(
    denoiser: nn.Module, forward: Callable[[], Any], latents: Any, root: Call, max_share: float
) -> tuple[Choice, list[Found]]:
    """The blocks as they ran; modules whose parts write into each other's inputs are kept whole."""
    sealed: set[str] = set()
    while True:
        choice = choose(root, denoiser, sealed, max_share)
        try:
            with Provenance(latents) as provenance, watched(denoiser, choice, provenance):
                forward()
            return choice, provenance.found
        except InputChangedError as error:
            around = max((name for name in choice.expanded if _inside(error.name, name)), key=len)
            if not around:
                raise UnsupportedPipelineError(
                    f"{error.name} changes a tensor that it was given, in place, so that its effect cannot "
                    "be sent to another device; let it return a new tensor"
                ) from None
            sealed.add(around)


def _inside(name: str, parent: str) -> bool:
    return not parent or name.startswith(f"{parent}.")


def _graph(
    choice: Choice,
    found: list[Found],
    flops: list[int],
    seconds: dict[Key, float] | None,
    weights: Mapping[str, int],
) -> BlockGraph:
    limit = EVERYWHERE_SHARE * sum(flops)
    free: list[bool] = []  # depends on no latents and is cheap
    blocks = []
    for block, own in zip(found, flops, strict=True):
        inputs = tuple(sorted(block.sources - {LATENTS}))
        everywhere = LATENTS not in block.sources and all(free[i] for i in inputs)
        everywhere = everywhere and own <= limit and block.name != ""
        free.append(everywhere)
        cost = own if seconds is None else seconds.get((block.name, block.call), 0.0)
        stored = weights.get(block.name, 0) if block.call == 0 else 0
        is_exit = block.name in choice.expanded
        blocks.append(
            Block(
                block.name, block.call, float(cost), inputs, block.output_bytes, stored, everywhere, is_exit
            )
        )
    return BlockGraph(tuple(blocks), "flops" if seconds is None else "seconds")


def _weight_bytes(tensors: Mapping[str, Tensor], choice: Choice) -> dict[str, int]:
    """Bytes of parameters and buffers by block: each goes to the innermost block around it."""
    chosen = choice.leaves | choice.expanded
    totals: dict[str, int] = {}
    for name, tensor in tensors.items():
        owner = name.rpartition(".")[0]
        while owner not in chosen:
            owner = owner.rpartition(".")[0]
        totals[owner] = totals.get(owner, 0) + tensor_bytes([tensor])
    return totals


__all__ = ["EVERYWHERE_SHARE", "MAX_SHARE", "Costs", "trace"]
