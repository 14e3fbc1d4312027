"""Which exchange the ranks of a job use."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import torch

from parasample.errors import ConfigError
from parasample.runtime.transports import Ranks, TorchRanks
from parasample.runtime.transports.exchange import TIMEOUT_S, Exchange, digest
from parasample.runtime.transports.gloo import GlooExchange
from parasample.runtime.transports.mailbox import Mailboxes
from parasample.runtime.transports.shared_memory import SharedMemoryExchange, unavailable

logger = logging.getLogger(__name__)
VARIABLE = "PARASAMPLE_EXCHANGE"
CHOICES = ("", "shm", "gloo")  # what the variable may say; nothing: the fastest that works


def make_exchange(ranks: Ranks, device: torch.device | str = "cpu", timeout_s: float = TIMEOUT_S) -> Exchange:
    """The exchange of this rank, of the same kind on every rank. Collective.

    Shared memory where the tensors lie on the CPU, all ranks are on one host and the native module is built;
    Gloo otherwise. The environment variable PARASAMPLE_EXCHANGE=shm or gloo overrides the choice.

    Args:
        ranks: all ranks that exchange.
        device: where the tensors lie.
        timeout_s: seconds after which a wait for one message is an error.

    Raises:
        ConfigError: on every rank, where the variable differs, is unknown or asks for what cannot work.
    """
    if not isinstance(ranks, TorchRanks):
        return Mailboxes(1).exchanges[0]
    wanted = os.environ.get(VARIABLE, "")
    reason = _why_not_shared_memory(torch.device(device))
    choice = CHOICES.index(wanted) if wanted in CHOICES else len(CHOICES)
    facts = torch.cat([torch.tensor([[choice, reason is None]], dtype=torch.uint8), _host_digest()], dim=1)
    gathered = ranks.all_gather(facts)
    choices, able, hosts = gathered[:, 0], gathered[:, 1], gathered[:, 2:]
    if bool((choices != choices[0]).any()) or wanted not in CHOICES:
        raise ConfigError(
            f"{VARIABLE}={wanted!r} on rank {ranks.rank} of {ranks.size}; give every rank the same: unset, "
            "shm or gloo"
        )
    if reason is None and not bool(able.all()):
        reason = f"rank {int(able.argmin())} cannot; see its `parasample doctor`"
    if reason is None and bool((hosts != hosts[0]).any()):
        reason = "the ranks are on several hosts, or in containers of their own"
    if wanted == "shm" and reason is not None:
        raise ConfigError(f"{VARIABLE}=shm, but shared memory does not work here: {reason}; unset it")
    if wanted == "gloo" or reason is not None:
        logger.info("exchange over Gloo: %s", reason or f"{VARIABLE}=gloo")
        return GlooExchange(ranks, device, timeout_s)
    return SharedMemoryExchange(ranks, timeout_s)


def _why_not_shared_memory(device: torch.device) -> str | None:
    return f"the tensors lie on {device}" if device.type != "cpu" else unavailable()


def _host_digest() -> torch.Tensor:
    """Equal on two ranks just where they share memory and see each other's processes: uint8 [1, 32]."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    facts = [socket.gethostname(), boot.read_text() if boot.exists() else ""]
    for path in map(Path, ("/dev/shm", "/proc/self/ns/pid", "/proc/self/ns/user")):
        found = path.stat() if path.exists() else None
        facts.append(f"{found.st_dev} {found.st_ino}" if found else "")
    return digest(repr(facts))
