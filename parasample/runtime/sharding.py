"""Weights that a rank has no use for: on disk while the denoiser is shared, and back to the bit.

Put aside, a tensor is empty, of its own dtype and on its own device, so that moving or casting the model
moves and casts what is there. What comes back goes to the device, and takes the dtype, that the empty tensor
has by then.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from parasample.errors import ConfigError, UnsupportedPipelineError
from parasample.plan.schedule import Schedule

Place = tuple[int, str]  # a module's identity, and the name of one of its own parameters or buffers
_PLAIN = (Tensor, nn.Parameter)


@dataclass
class _View:
    """One parameter or buffer: where it hangs, and which elements of a piece of memory it is."""

    module: nn.Module
    name: str
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def place(self) -> Place:
        return id(self.module), self.name


@dataclass
class _Piece:
    """Memory that one tensor, or several that are tied, lie in: its place in the file."""

    start: int
    num_bytes: int
    views: list[_View] = field(default_factory=list)


class ShardedWeights:
    """The weights of a denoiser, of which a rank holds only some.

    All are put aside when this is made; `keep` brings back those that are needed, `restore` all others. They
    wait in a file without a name in the folder for temporary files (TMPDIR), which no other process can open
    and which is gone with this process.

    Args:
        denoiser: its modules stay as they are.

    Raises:
        ConfigError: the folder for temporary files has no room; nothing was changed.
        UnsupportedPipelineError: see `require_shardable`.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        require_shardable(denoiser)
        self.denoiser = denoiser
        self._file: Any = tempfile.TemporaryFile()  # noqa: SIM115 - open until all is restored
        self._shapes: dict[Place, Tensor] = {}
        pieces: dict[int, _Piece] = {}
        end = 0
        for module, name, tensor in _own_tensors(denoiser):
            if tensor.numel() == 0:
                continue
            storage = tensor.untyped_storage()
            piece = pieces.get(storage._cdata)
            if piece is None:
                piece = pieces[storage._cdata] = _Piece(end, storage.nbytes())
                self._write(storage, end)
                end += piece.num_bytes
            view = _View(
                module, name, tensor.dtype, int(tensor.storage_offset()), tensor.shape, tensor.stride()
            )
            piece.views.append(view)
            self._shapes[view.place] = tensor.detach().to("meta")
        self._aside = list(pieces.values())
        for piece in self._aside:
            for view in piece.views:
                tensor = getattr(view.module, view.name)
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        _give_memory_back()

    @property
    def complete(self) -> bool:
        """Whether nothing is put aside."""
        return not self._aside

    def on_meta(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, with its full shape and no data."""
        modules = dict(self.denoiser.named_modules())
        found = {}
        for named in (self.denoiser.named_parameters(), self.denoiser.named_buffers()):
            for path, tensor in named:
                holder, _, name = path.rpartition(".")
                shape = self._shapes.get((id(modules[holder]), name), tensor)
                found[path] = torch.empty_like(shape, dtype=tensor.dtype, device="meta")
        return found

    def keep(self, needed: set[Place]) -> None:
        """Bring back the tensors at these places, and what is tied to them."""
        self._bring_back([p for p in self._aside if any(view.place in needed for view in p.views)])

    def restore(self) -> None:
        """Bring back everything, and forget the file. Does nothing the second time."""
        self._bring_back(list(self._aside))
        self._file.close()

    def _bring_back(self, pieces: list[_Piece]) -> None:
        for piece in pieces:
            memory = self._read(piece)
            on_device = {memory.device: memory}
            for view in piece.views:
                tensor = getattr(view.module, view.name, None)
                if tensor is None or tensor.numel():
                    continue  # somebody has put another there
                if tensor.device not in on_device:
                    on_device[tensor.device] = memory.to(tensor.device)
                storage = on_device[tensor.device].untyped_storage()
                whole = torch.empty(0, dtype=view.dtype, device=tensor.device)
                whole.set_(storage, view.offset, view.shape, view.stride)
                tensor.data = whole.to(tensor.dtype)
            self._aside.remove(piece)

    def _write(self, storage: torch.UntypedStorage, start: int) -> None:
        flat = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).cpu()
        view = flat.numpy().data
        try:
            while view:
                written = os.pwrite(self._file.fileno(), view, start)
                view, start = view[written:], start + written
        except OSError as error:
            self._file.close()
            raise ConfigError(
                f"shard_weights=True puts the denoiser's weights into {tempfile.gettempdir()}, which failed: "
                f"{error.strerror}; free space there, or set TMPDIR to a folder on a larger disk"
            ) from None

    def _read(self, piece: _Piece) -> Tensor:
        flat = torch.empty(piece.num_bytes, dtype=torch.uint8)
        view, start = flat.numpy().data, piece.start
        while view:
            count = os.preadv(self._file.fileno(), [view], start)
            if count == 0:
                raise OSError(
                    f"the file of weights put aside ends at byte {start}; nothing should have cut it"
                )
            view, start = view[count:], start + count
        return flat


def _give_memory_back() -> None:
    """Let the C library return what was freed between other things, where it has a way."""
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def require_shardable(denoiser: nn.Module) -> None:
    """Raise unless weights can be put aside and come back as they were.

    Raises:
        ConfigError: for hooks that move weights between devices by themselves.
        UnsupportedPipelineError: for weights that are no plain tensors in a device's memory.
    """
    for path, module in denoiser.named_modules():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        if hasattr(module, "_hf_hook") or any("offload" in name for name in hooks):
            raise ConfigError(
                f"{path or type(module).__name__} has a hook that moves its weights (CPU offload, device "
                "map), which contradicts shard_weights=True; call pipe.remove_all_hooks() first and load "
                "without device_map, or pass shard_weights=False"
            )
    for module, name, tensor in _own_tensors(denoiser):
        if (
            type(tensor) not in _PLAIN
            or tensor.layout is not torch.strided
            or tensor.is_quantized
            or tensor.is_meta
        ):
            kind = "a meta tensor" if tensor.is_meta else f"a {type(tensor).__name__} ({tensor.dtype})"
            raise UnsupportedPipelineError(
                f"shard_weights=True needs plain tensors with data, found {type(module).__name__}.{name}, "
                f"{kind}; load the denoiser's weights, without quantization, or pass shard_weights=False"
            )


def needed_places(denoiser: nn.Module, schedule: Schedule, stage: int) -> set[Place]:
    """Where the weights hang that a stage's forward uses.

    Those of its own blocks, and those that belong to the code of expanded modules it passes through on the
    way to them (see `ComponentRunner.block`).
    """
    blocks = schedule.graph.blocks
    modules = dict(denoiser.named_modules(remove_duplicate=False))
    chosen = {block.name for block in blocks}
    own, at_work = schedule.own[stage], schedule.own[stage] | set(schedule.reads[stage])
    repeated = any(block.call for block in blocks)
    entered = {""}
    needed: set[Place] = set()
    for index, block in enumerate(blocks):
        if block.exit:
            prefix = f"{block.name}." if block.name else ""
            inside = any(blocks[other].name.startswith(prefix) for other in at_work if other != index)
            if index in own or repeated or inside:
                entered.add(block.name)
        elif index in own:
            needed |= {(id(m), name) for m, name, _ in _own_tensors(modules[block.name])}
    for path, module in modules.items():
        around = path
        while around not in chosen:
            around = around.rpartition(".")[0]
        if around in entered:
            needed |= {(id(module), name) for name in (*module._parameters, *module._buffers)}
    return needed


def _own_tensors(root: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every parameter and buffer of a module and those below, with the module that holds it."""
    for module in root.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield module, name, tensor
