"""What a rank of tests/runtime/test_exchange.py does over one transport; every job returns what it found."""

from __future__ import annotations

import atexit
import datetime
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from parasample.runtime.transports import TorchRanks
from parasample.runtime.transports.choose import make_exchange
from parasample.runtime.transports.exchange import Channel, Exchange

ROUNDS = 9  # more than any ring has slots
SHAPES = [(5, 7), (), (1,), (3, 0, 2), (1021,), (2, 3, 129)]  # scalars, nothing, odd byte counts
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
Job = Callable[[Exchange], Any]


def message(channel: Channel, index: int) -> torch.Tensor:
    """Message `index` of a channel, the same on every rank."""
    generator = torch.Generator().manual_seed(1000 * channel.source + index)
    return torch.randint(0, 100, channel.shape, generator=generator).to(channel.dtype)


def is_message(found: torch.Tensor, channel: Channel, index: int) -> bool:
    expected = message(channel, index)
    return found.dtype == expected.dtype and torch.equal(found, expected)


def every_dtype_and_shape() -> list[Channel]:
    """One channel from each rank of three to both others, for each shape and dtype."""
    return [
        Channel(f"{dtype} {shape}", source, tuple({0, 1, 2} - {source}), shape, dtype)
        for shape in SHAPES for dtype in DTYPES for source in range(3)
    ]  # fmt: skip


def order(exchange: Exchange) -> list[bool]:
    channels = every_dtype_and_shape()
    exchange.open(channels)
    right = []
    for index in range(ROUNDS):
        for number, channel in enumerate(channels):
            if channel.source == exchange.rank:
                exchange.send(number, message(channel, index))
        for number, channel in reversed(list(enumerate(channels))):  # not the order of sending
            if exchange.rank in channel.readers:
                right.append(is_message(exchange.receive(number), channel, index))
        exchange.flush()
    return right


def kept(exchange: Exchange, keep: int) -> list[bool]:
    """Rank 0 runs ahead as far as it can; the last `keep` messages of each reader stay what they were."""
    channel = Channel("kept", 0, (1, 2), (4001,), torch.float32, keep)
    exchange.open([channel])
    if exchange.rank == 0:
        for index in range(ROUNDS):
            exchange.send(0, message(channel, index))
        exchange.flush()
        return []
    right, held = [], []
    for index in range(ROUNDS):
        held = [*held, exchange.receive(0)][-keep:]
        time.sleep(0.02 * exchange.rank)  # the sender fills every slot it may
        first = index + 1 - len(held)
        right += [is_message(found, channel, first + place) for place, found in enumerate(held)]
    return right


def strided(exchange: Exchange) -> bool:
    exchange.open([Channel("strided", 0, (1, 2), (6, 4), torch.float64)])
    whole = torch.arange(48.0, dtype=torch.float64).view(8, 6).T[:, ::2]
    if exchange.rank == 0:
        exchange.send(0, whole)
        exchange.flush()
        return True
    return torch.equal(exchange.receive(0), whole)


def across_modes(exchange: Exchange) -> bool:
    """Channels opened in inference mode serve outside of it; a tensor that requires gradients can be sent."""
    with torch.inference_mode():
        exchange.open([Channel("modes", 0, (1, 2), (4,), torch.float32)])
    right = True
    for inference in (False, True):
        with torch.inference_mode(inference):
            if exchange.rank == 0:
                exchange.send(0, torch.ones(4, requires_grad=not inference))
                exchange.flush()
            else:
                found = exchange.receive(0)
                right &= torch.equal(found, torch.ones(4)) and not found.requires_grad
    return right


def counted(exchange: Exchange) -> int:
    before = exchange.bytes_sent
    exchange.open(
        [Channel("both", 0, (1, 2), (3,), torch.float32), Channel("one", 1, (0,), (5,), torch.int64)]
    )
    if exchange.rank == 0:
        exchange.send(0, torch.zeros(3))
    if exchange.rank == 1:
        exchange.send(1, torch.zeros(5, dtype=torch.int64))
    for number in {0: [1], 1: [0], 2: [0]}[exchange.rank]:
        exchange.receive(number)
    exchange.flush()
    return exchange.bytes_sent - before


def after_a_fork(exchange: Exchange) -> bool:
    """A process forked from a rank, which ends, does not end the exchange."""
    exchange.open([Channel("fork", 0, (1, 2), (4,), torch.float32)])
    child = os.fork()
    if child == 0:
        atexit._run_exitfuncs()
        os._exit(0)
    os.waitpid(child, 0)
    if exchange.rank == 0:
        time.sleep(0.15)  # long enough for the others to look
        exchange.send(0, torch.ones(4))
        exchange.flush()
        return True
    return torch.equal(exchange.receive(0), torch.ones(4))


def kept_after_close(exchange: Exchange) -> bool:
    """A tensor that was received outlives its channels."""
    channel = Channel("last", 0, (1, 2), (50_000,), torch.float32)
    exchange.open([channel])
    found = message(channel, 0)
    if exchange.rank == 0:
        exchange.send(0, found)
    else:
        found = exchange.receive(0)
    exchange.flush()
    exchange.open([])
    return is_message(found, channel, 0)


def unlike(exchange: Exchange) -> Any:
    exchange.open([Channel("unlike", 0, (1,), (3 + (exchange.rank == 2),), torch.float32)])


def impossible(**changes: Any) -> Job:
    facts = {"name": "odd", "source": 0, "readers": (1,), "shape": (3,), "dtype": torch.float32, "keep": 1}
    return lambda exchange: exchange.open([Channel(**facts | changes)])


def misuse(wrong: Callable[[Exchange], Any]) -> Job:
    def job(exchange: Exchange) -> Any:
        exchange.open(
            [Channel("one", 0, (1, 2), (3,), torch.float32), Channel("two", 1, (0,), (3,), torch.float32)]
        )
        return wrong(exchange)

    return job


def on_reader(exchange: Exchange) -> Any:
    exchange.open([Channel("quiet", 0, (1, 2), (3,), torch.float32)])
    return exchange.receive(0) if exchange.rank else None


# Jobs that must succeed.
JOBS: dict[str, Job] = {
    "order": order,
    "kept-1": lambda exchange: kept(exchange, 1),
    "kept-2": lambda exchange: kept(exchange, 2),
    "strided": strided,
    "across-modes": across_modes,
    "counted": counted,
    "after-a-fork": after_a_fork,
    "kept-after-close": kept_after_close,
}
# Jobs that must end in ConfigError on every rank, and leave the exchange usable.
REFUSED: dict[str, Job] = {
    "unlike": unlike,
    "own-reader": impossible(readers=(0, 1)),
    "no-reader": impossible(readers=()),
    "unknown-reader": impossible(readers=(3,)),
    "twice": impossible(readers=(1, 1)),
    "keep-0": impossible(keep=0),
    "send-foreign": misuse(lambda exchange: exchange.send(int(exchange.rank == 0), torch.zeros(3))),
    "send-shape": misuse(lambda exchange: exchange.send(exchange.rank % 2, torch.zeros(4))),
    "send-dtype": misuse(lambda exchange: exchange.send(exchange.rank % 2, torch.zeros(3).double())),
    "receive-own": misuse(lambda exchange: exchange.receive(int(exchange.rank > 0))),
}


def too_big(exchange: Exchange) -> Any:
    """2 PiB of messages on rank 0 alone."""
    exchange.open([Channel("too big", 0, (1, 2), (1 << 50,), torch.uint8)])


def attempt(job: Job, exchange: Exchange) -> Any:
    """What the job returned, or its error with the seconds it took."""
    began_at = time.monotonic()
    try:
        return job(exchange)
    except Exception as error:
        return {
            "error": type(error).__name__, "message": str(error), "seconds": time.monotonic() - began_at,
        }  # fmt: skip


def join(rank: int, size: int, rendezvous: Path, transport: str) -> TorchRanks:
    torch.set_num_threads(1)
    os.environ["PARASAMPLE_EXCHANGE"] = transport
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size,
        timeout=datetime.timedelta(seconds=20),
    )  # fmt: skip
    return TorchRanks()


def work(rank: int, size: int, rendezvous: Path, results: Path, transport: str) -> None:
    """All jobs over one exchange, then those that end it."""
    ranks = join(rank, size, rendezvous, transport)
    exchange = make_exchange(ranks)
    answers = {name: attempt(job, exchange) for name, job in (JOBS | REFUSED).items()}
    answers["too-big"] = attempt(too_big, exchange)
    answers["again"] = attempt(order, exchange)
    exchange.close()
    answers["mapped"] = "/parasample-" in Path("/proc/self/maps").read_text()
    answers["closed"] = attempt(lambda closed: closed.receive(0), exchange)

    hasty = make_exchange(ranks, timeout_s=0.5)
    answers["late"] = attempt(on_reader, hasty)
    dist.barrier()
    answers["dropped"] = attempt(dropped_on_0, make_exchange(ranks))
    exchange = make_exchange(ranks)
    answers["abort"] = attempt(gives_up_on_0, exchange)
    dist.barrier()
    torch.save(answers | {"type": type(exchange).__name__}, results)


def dropped_on_0(exchange: Exchange) -> Any:
    exchange.open([Channel("quiet", 0, (1, 2), (3,), torch.float32)])
    if exchange.rank == 0:
        time.sleep(0.2)  # then nobody holds the exchange any more
    return exchange.receive(0) if exchange.rank else None


def gives_up_on_0(exchange: Exchange) -> Any:
    exchange.open([Channel("quiet", 0, (1, 2), (3,), torch.float32)])
    if exchange.rank:
        return exchange.receive(0)
    time.sleep(0.3)
    exchange.abort()
    return exchange.receive(0)


def lose_a_rank(rank: int, size: int, rendezvous: Path, results: Path, transport: str) -> None:
    """Rank 0 is killed while rank 1 waits for its message and, over shared memory, rank 2 for a free slot."""
    exchange = make_exchange(join(rank, size, rendezvous, transport))
    exchange.open(
        [Channel("from 0", 0, (1,), (3,), torch.float32), Channel("to 0", 2, (0,), (3,), torch.float32)]
    )

    def job(exchange: Exchange) -> Any:
        if rank == 0:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1:
            return exchange.receive(0)
        for _ in range(ROUNDS):
            exchange.send(1, torch.zeros(3))
        exchange.flush()

    torch.save(attempt(job, exchange), results)
