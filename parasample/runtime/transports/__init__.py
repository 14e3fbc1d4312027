"""How ranks talk. The only place that imports `torch.distributed`."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parasample.errors import ConfigError, TransportError

# torch 2.13 gave it this name and warns of the old one, which is all that 2.11 has.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

# The device type each backend exchanges tensors on. Gloo claims CUDA too, but copies through the host itself.
HOME = {"gloo": "cpu", "nccl": "cuda"}


class Ranks(Protocol):
    """A group of processes that share the evaluations of a round."""

    size: int
    rank: int

    def all_gather(self, part: Tensor) -> Tensor:
        """Concatenate every rank's `part` [n, ...] in rank order: [size * n, ...], on `part`'s device."""
        ...

    def require_same(self, what: str, value: Tensor) -> None:
        """Raise ConfigError on every rank unless `value` is bit-equal on all."""
        ...


class LocalRank:
    """One process."""

    size = 1
    rank = 0

    def all_gather(self, part: Tensor) -> Tensor:
        return part

    def require_same(self, what: str, value: Tensor) -> None:
        return None


LOCAL = LocalRank()


def carrier_type(backend: str, device_type: str) -> str:
    """The device type on which a process group exchanges a tensor that lies on `device_type`.

    Args:
        backend: as `torch.distributed` writes it: "nccl", "gloo" or pairs such as "cpu:gloo,cuda:nccl".
        device_type: "cpu" or "cuda"; kept where the group serves it, or where its backends are unknown.
    """
    served = []
    for entry in backend.split(","):
        claimed, _, name = entry.strip().rpartition(":")
        served.append(HOME.get(name, claimed or device_type))
    return device_type if device_type in served else served[0]


def bits_of(value: Tensor) -> Tensor:
    """The bytes of a tensor of any strides as a vector on the CPU."""
    # Not `contiguous()`: that keeps the stride of a dimension of size 1, and `view` refuses such.
    packed = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return packed.reshape(-1).view(torch.uint8)


class TorchRanks:
    """Ranks of a `torch.distributed` process group (Gloo on CPUs, NCCL on GPUs)."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self._backend = dist.get_backend_config(group)

    def all_gather(self, part: Tensor) -> Tensor:
        home, carrier = part.device, carrier_type(self._backend, part.device.type)
        if carrier != home.type:  # such as a control message on the CPU in a group that only has NCCL
            part = part.to(carrier)
        part = part.contiguous()
        whole = part.new_empty((self.size * part.shape[0], *part.shape[1:]))
        try:
            _gather(whole, part, group=self.group)
        except RuntimeError as error:
            raise TransportError(
                f"rank {self.rank} of {self.size} waited for the other ranks' model outputs of this round "
                f"and did not get them: {error}. A rank has ended or is too slow; look at its output"
            ) from error
        return whole.to(home)

    def send(self, tensor: Tensor, to: int) -> None:
        """torch.distributed's own blocking send, on the tensor's device."""
        dist.send(tensor, to, group=self.group)

    def receive(self, tensor: Tensor, source: int) -> None:
        """torch.distributed's own blocking receive, into `tensor`."""
        dist.recv(tensor, source, group=self.group)

    def require_same(self, what: str, value: Tensor) -> None:
        # A checksum over the bits: equal tensors give equal sums; a difference is as good as always found.
        bits = bits_of(value).to(torch.int64)
        position = torch.arange(1, bits.numel() + 1, dtype=torch.int64)
        digest = torch.stack([bits.sum(), (bits * position).sum()]).to(value.device)
        digests = self.all_gather(digest[None])
        if not bool((digests == digests[0]).all()):
            raise ConfigError(
                f"{what} differs between the {self.size} ranks; give every rank the same inputs and a "
                "generator with the same seed: generator=torch.Generator().manual_seed(seed)"
            )


TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(seconds=120)  # of one exchange; a round of a big model on a slow rank stays far below it


def default_ranks() -> Ranks:
    """All ranks of the running job: the default process group, joined first under `torchrun`.

    A script that starts its own process group keeps it. Otherwise the group gets Gloo for CPU tensors and
    NCCL for CUDA tensors, and this process the CUDA device of its local rank. Without torchrun: one rank.
    """
    if not dist.is_available():
        return LOCAL
    if not dist.is_initialized() and all(name in os.environ for name in TORCHRUN_VARIABLES):
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        atexit.register(_leave)
    if dist.is_initialized() and dist.get_world_size() > 1:
        return TorchRanks()
    return LOCAL


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
