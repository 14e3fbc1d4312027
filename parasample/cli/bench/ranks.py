"""Wall-clock of the same call on one process and on several, each with one CPU thread or one GPU.

Processes are started by torchrun, one count after the other, several times over, so that a machine whose
speed drifts treats both alike; the ratio of a pair of neighbours is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import parasample as ps
from parasample.bridge.load import load_pipeline, set_sampler
from parasample.cli.bench.results import Results, prompts_for
from parasample.cli.bench.torchrun import launch
from parasample.cli.sampling import call_pipeline
from parasample.cli.text import progress
from parasample.models import demo_model_path

EXAMPLE = "ranks --ranks 2"
CASES: tuple[tuple[str, int, int | str], ...] = (
    ("ddim", 100, 32),
    ("dpm++", 50, "full"),
    ("ddpm", 100, "full"),
)
COLUMNS = {
    "sampler": "{title} {steps}", "window": "{window}", "batch": "{batch}", "ranks": "{ranks}",
    "rounds": "{rounds}", "1 rank": "{one_s:.2f} s", "all ranks": "{all_s:.2f} s", "faster": "{faster:.2f}x",
    "pairs": "{faster_min:.2f}-{faster_max:.2f}", "difference": "{difference:.1e}",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--ranks", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each count (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="samples (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=5.0, help="(default: %(default)s)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measure every row that is not in the file yet, and show them all."""
    if args.worker is not None:
        return _work(args)
    cases = CASES[:1] if args.quick else CASES
    pairs = 2 if args.quick else args.pairs
    results = Results("ranks", args)
    model = ("--model", str(args.model)) if args.model else ()
    with progress(len(cases) * pairs * 2, "ranks", "run") as bar:
        for sampler, steps, window in cases:
            settings = {
                "bench": "ranks", "sampler": sampler, "steps": steps, "window": window, "batch": args.batch,
                "guidance": args.guidance, "ranks": args.ranks, "pairs": pairs,
            }  # fmt: skip
            if results.find(settings) is not None:
                bar.update(pairs * 2)
                continue
            measured: dict[int, list[dict[str, Any]]] = {1: [], args.ranks: []}
            for _ in range(pairs):
                for count, runs in measured.items():
                    runs.append(launch("ranks", count, settings, args.device, *model))
                    bar.update()
            results.add(settings, _figures(measured[1], measured[args.ranks]))
    results.show(COLUMNS, args.json)
    return 0


def _work(args: argparse.Namespace) -> int:
    """One rank of a run: a call to warm up, then three timed ones."""
    task = json.loads(args.worker.read_text())
    rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    else:
        torch.set_num_threads(1)
    pipe = load_pipeline(args.model or demo_model_path())
    title = set_sampler(pipe, task["sampler"], task["steps"])
    seeds = list(range(task["batch"]))
    seconds = []
    with ps.parallelize(pipe, ps.Picard(window=task["window"])) as handle:
        for _ in range(4):
            began_at = time.perf_counter()
            latents, _ = call_pipeline(pipe, prompts_for(seeds), task["steps"], task["guidance"], seeds)
            seconds.append(time.perf_counter() - began_at)
        stats = handle.stats
    if rank == 0:
        found = {
            "seconds": statistics.median(seconds[1:]), "rounds": stats.rounds,
            "evaluations": stats.evaluations,
            "bytes_sent": stats.bytes_sent, "title": title, "latents": latents,
        }  # fmt: skip
        torch.save(found, args.worker.with_suffix(".answer"))
    return 0


def _figures(one: list[dict[str, Any]], several: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(one, several, strict=True)]
    last = several[-1]
    return {
        "title": last["title"], "rounds": last["rounds"], "evaluations": last["evaluations"],
        "bytes_sent": last["bytes_sent"], "one_s": statistics.median(run["seconds"] for run in one),
        "all_s": statistics.median(run["seconds"] for run in several), "faster": statistics.median(ratios),
        "faster_min": min(ratios), "faster_max": max(ratios),
        "difference": float((one[-1]["latents"] - last["latents"]).abs().max()),
    }  # fmt: skip
