"""Real ranks for tests: forked processes that run the same jobs in the same order."""

from __future__ import annotations

import datetime
import multiprocessing
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

Answer = dict[str, Any]
Answers = list[dict[str, Answer]]  # of each rank, by job
Jobs = Mapping[str, Callable[[int], Answer]]

# Of a group of processes; a hang is what it is there to catch, on machines that do other work, too.
TIMEOUT_S = 300
EXCHANGE_TIMEOUT_S = 60


class Killed(Exception):
    """A job raises it to end its rank there and then, as a process that was killed does."""


def in_processes(jobs: Jobs, size: int, folder: Path, timeout_s: float = TIMEOUT_S) -> Answers:
    """What each of `size` ranks answered to each job, or {"error": class name, "message": text}.

    Forked, because importing diffusers takes longer than the jobs. A single rank has no process group.

    Args:
        jobs: by name; each is called with the rank.
        folder: empty, for the rendezvous and the answers.
    """
    context = multiprocessing.get_context("fork")
    results = [folder / f"result-{rank}.pt" for rank in range(size)]
    processes = [
        context.Process(target=_serve, args=(jobs, rank, size, folder / "rendezvous", results[rank]))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    give_up = time.monotonic() + timeout_s
    try:
        for process in processes:
            process.join(max(give_up - time.monotonic(), 0))
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert [process.exitcode for process in processes] == [0] * size, "a rank hung or crashed"
    return [torch.load(path, weights_only=False) for path in results]


def _serve(jobs: Jobs, rank: int, size: int, rendezvous: Path, results: Path) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size,
            timeout=datetime.timedelta(seconds=EXCHANGE_TIMEOUT_S),
        )  # fmt: skip
    answers: dict[str, Answer] = {}
    for name, job in jobs.items():
        began = time.perf_counter()
        try:
            answers[name] = job(rank)
        except Killed as error:
            answers[name] = {"error": type(error).__name__, "message": str(error)}
            torch.save(answers, results)
            return
        except Exception as error:
            answers[name] = {"error": type(error).__name__, "message": str(error)}
        answers[name]["seconds"] = time.perf_counter() - began
        torch.save(answers, results)  # what was found is there even if the next one hangs
    if size > 1 and dist.is_initialized():
        dist.destroy_process_group()
