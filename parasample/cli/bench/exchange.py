"""How long a message takes from one rank to another, by size, for every transport that works here.

Two ranks send each other the same message back and forth; half of the time of a turn is "one way", and
includes that it is read. "torch" is torch.distributed's own blocking send and recv (Gloo on CPUs), "copy"
what a plain copy of as many bytes takes in one process: the limit of any transport between two memories. All
take turns in the same run, and every echo is compared with what was sent.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parasample.cli.bench.results import Results, spread
from parasample.cli.bench.torchrun import launch
from parasample.cli.text import progress, say
from parasample.errors import TransportError
from parasample.runtime.transports import TorchRanks, default_ranks
from parasample.runtime.transports.exchange import Channel, Exchange
from parasample.runtime.transports.gloo import GlooExchange
from parasample.runtime.transports.shared_memory import SharedMemoryExchange, unavailable

EXAMPLE = "exchange --sizes 4 2621440"
NEEDS_MODEL = False
# From a flag to the largest tensor that travels; 2.5 MiB is a hidden state of SDXL in half precision.
SIZES = (4, 64, 1 << 10, 16 << 10, 256 << 10, 2_621_440, 16 << 20, 64 << 20)
SECONDS = 0.5  # of one transport at one size
TURNS = 10, 500  # at least, at most
COLUMNS = {
    "bytes": "{bytes:,}", "transport": "{transport}", "one way": "{microseconds:,.1f} us",
    "p20-p80": "{microseconds_p20:,.1f}-{microseconds_p80:,.1f}", "GB/s": "{gigabytes_per_second:.2f}",
    "torch takes": "{times:.1f}x",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=list(SIZES), help="bytes (default: %(default)s)"
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measure all sizes in one run of two ranks, and show and draw them."""
    if args.worker is not None:
        return _work(args)
    if args.quick:
        args.sizes = [size for size in args.sizes if size <= 1 << 20] or args.sizes[:1]
    results = Results("exchange", args)
    names = [name for name, reason in TRANSPORTS.items() if reason is None]
    wanted = [_settings(name, size) for size in args.sizes for name in (*names, "torch", "copy")]
    if not results.find_all(wanted):
        with progress(1, "exchange", "run") as bar:
            measured = launch("exchange", 2, {"sizes": args.sizes, "transports": names}, args.device)
            bar.update()
        for settings in wanted:
            results.add(settings, measured[f"{settings['transport']} {settings['bytes']}"])
    for row in results.rows:
        torch_row = next(r for r in results.rows if (r["transport"], r["bytes"]) == ("torch", row["bytes"]))
        row["times"] = torch_row["microseconds"] / row["microseconds"]
    results.show(COLUMNS, args.json)
    if not args.json:
        for name, reason in TRANSPORTS.items():
            if reason is not None:
                say(f"{name} was left out: {reason}")
    from parasample.cli.exchange_picture import exchange_figure

    exchange_figure(results.rows, results.path.with_suffix(".png"))
    return 0


TRANSPORTS: dict[str, str | None] = {"shm": unavailable(), "gloo": None}  # and why it does not work here


def _settings(transport: str, size: int) -> dict[str, Any]:
    return {"bench": "exchange", "transport": transport, "bytes": size, "ranks": 2}


# ---------------------------------------------------------------------- what a rank does

Turn = Callable[[Tensor], Tensor]  # rank 0: sends a message and returns its echo; rank 1 ignores it


def _work(args: argparse.Namespace) -> int:
    """One of the two ranks; the first one answers."""
    task = json.loads(args.worker.read_text())
    torch.set_num_threads(1)
    ranks = default_ranks()
    if not isinstance(ranks, TorchRanks) or ranks.size != 2:
        raise TransportError(
            f"expected 2 ranks, found {ranks.size}; start this through `parasample bench exchange`"
        )
    exchanges: dict[str, Exchange] = {}
    makers: dict[str, Callable[[], Exchange]] = {
        "shm": lambda: SharedMemoryExchange(ranks), "gloo": lambda: GlooExchange(ranks)
    }  # fmt: skip
    for name in task["transports"]:
        exchanges[name] = makers[name]()
    found: dict[str, dict[str, float]] = {}
    for size in task["sizes"]:
        ways = {name: _over(exchange, size) for name, exchange in exchanges.items()}
        for name, turn in (ways | {"torch": _over_torch(ranks, size)}).items():
            found[f"{name} {size}"] = _timed(ranks, turn, size, f"{name} with {size} bytes")
        found[f"copy {size}"] = _timed(ranks, _copy(size) if ranks.rank == 0 else None, size, "a copy")
    for exchange in exchanges.values():
        exchange.close()
    if ranks.rank == 0:
        torch.save(found, args.worker.with_suffix(".answer"))
    return 0


def _over(exchange: Exchange, size: int) -> Turn:
    """A message there and back over an exchange; the echo is sent from where it was received."""
    shape = (size,)
    exchange.open(
        [Channel("there", 0, (1,), shape, torch.uint8), Channel("back", 1, (0,), shape, torch.uint8)]
    )

    def turn(message: Tensor) -> Tensor:
        if exchange.rank == 0:
            exchange.send(0, message)
            echo = exchange.receive(1)
        else:
            echo = exchange.receive(0)
            exchange.send(1, echo)
        exchange.flush()
        return echo

    return turn


def _over_torch(ranks: TorchRanks, size: int) -> Turn:
    echo = torch.empty(size, dtype=torch.uint8)

    def turn(message: Tensor) -> Tensor:
        if ranks.rank == 0:
            ranks.send(message, 1)
        ranks.receive(echo, 1 - ranks.rank)
        if ranks.rank == 1:
            ranks.send(echo, 0)
        return echo

    return turn


def _copy(size: int) -> Turn:
    """There and back in one process."""
    there, back = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
    return lambda message: back.copy_(there.copy_(message))


def _timed(ranks: TorchRanks, turn: Turn | None, size: int, what: str) -> dict[str, float]:
    """Microseconds of one way, and what that makes of a second. Both ranks make as many turns."""
    messages = [torch.full((size,), value, dtype=torch.uint8) for value in (1, 2)]
    seconds: list[float] = []
    for count in (TURNS[0], None):  # a first few turns connect, touch all memory and tell how long they take
        if count is None:
            typical = ranks.all_gather(torch.tensor([sorted(seconds)[len(seconds) // 2] if seconds else 0.0]))
            count = int(min(max(SECONDS / max(float(typical.max()), 1e-9), TURNS[0]), TURNS[1]))
        seconds = []
        ranks.all_gather(torch.zeros(1))
        for index in range(count if turn is not None else 0):
            began_at = time.perf_counter()
            echo = turn(messages[index % 2])  # type: ignore[misc]
            seconds.append(time.perf_counter() - began_at)
            if not torch.equal(echo, messages[index % 2]):
                raise TransportError(f"{what}: the echo differs from what was sent")
    ranks.all_gather(torch.zeros(1))
    if not seconds:
        return {}
    one_way = spread([1e6 * value / 2 for value in seconds], "microseconds")
    return one_way | {
        "turns": float(len(seconds)),
        "gigabytes_per_second": size / one_way["microseconds"] / 1e3,
    }
