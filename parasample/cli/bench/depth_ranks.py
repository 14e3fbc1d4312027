"""Wall-clock of one call on one process and cut in depth over several, each with one CPU thread or one GPU.

The model is a U-Net of random weights, large enough that computing dominates as it does in models people use.
Processes are started by torchrun, one count after the other, several times over, so that a machine whose
speed drifts treats both alike; the ratio of a pair of neighbours is what counts. "predicted" is what the
schedule's simulation makes of the measured costs of the blocks, over "crowding": how much longer a forward
takes while all ranks compute than while one does, on cores that share caches and memory.
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
from parasample.bridge.load import default_device, random_stable_diffusion
from parasample.bridge.pipeline import AsyncHandle
from parasample.cli.bench.results import Results
from parasample.cli.bench.torchrun import launch
from parasample.cli.text import progress
from parasample.plan.simulate import Costs, predicted_speedup
from parasample.runtime.transports import Ranks, default_ranks

EXAMPLE = "depth_ranks --components 2 --steps 50"
NEEDS_MODEL = False
UNET: dict[str, Any] = {
    "sample_size": 32, "block_out_channels": (96, 192, 384), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 512, "attention_head_dim": 8, "norm_num_groups": 32,
}  # fmt: skip
# A sender copies at about this rate into shared memory, and a reader finds it there.
COPY_BYTES_PER_SECOND = 1e10
COLUMNS = {
    "N": "{components}", "S": "{stride}", "ranks": "{ranks}", "warm-up": "{warm_up}", "steps": "{steps}",
    "extrapolate": "{extrapolate}", "1 rank": "{one_s:.2f} s", "all ranks": "{all_s:.2f} s",
    "faster": "{faster:.2f}x", "pairs": "{faster_min:.2f}-{faster_max:.2f}", "predicted": "{predicted:.2f}x",
    "crowding": "{crowding:.2f}",
    "kB a step": "{kilobytes:.0f}",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--components", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--stride", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each count (default: %(default)s)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measure every row that is not in the file yet, and show them all."""
    if args.worker is not None:
        return _work(args)
    if args.quick:
        args.pairs, args.steps = 1, min(args.steps, 8)
    results = Results("depth_ranks", args)
    ranks = args.components + args.stride - 1
    with progress(2 * args.pairs * 2, "depth_ranks", "run") as bar:
        for extrapolate in ("auto", None):
            settings = {
                "bench": "depth_ranks", "components": args.components, "stride": args.stride, "ranks": ranks,
                "warm_up": args.warm_up, "steps": args.steps, "pairs": args.pairs, "extrapolate": extrapolate,
            }  # fmt: skip
            if results.find(settings) is not None:
                bar.update(2 * args.pairs)
                continue
            measured: dict[int, list[dict[str, Any]]] = {1: [], ranks: []}
            for _ in range(args.pairs):
                for count, runs in measured.items():
                    runs.append(launch("depth_ranks", count, settings, args.device))
                    bar.update()
            results.add(settings, _figures(measured[1], measured[ranks]))
    for row in results.rows:
        row.setdefault("crowding", float("nan"))  # not measured in the oldest rows
    results.show(COLUMNS, args.json)
    return 0


def _work(args: argparse.Namespace) -> int:
    """One rank of a run: a call that warms up (and cuts the denoiser), then a timed one."""
    task = json.loads(args.worker.read_text())
    torch.set_num_threads(1)
    pipe, call = random_stable_diffusion(UNET, size=UNET["sample_size"])
    pipe.to(args.device or default_device())

    def timed(steps: int) -> float:
        generator = torch.Generator().manual_seed(0)
        began_at = time.perf_counter()
        pipe(**call, num_inference_steps=steps, generator=generator)
        return time.perf_counter() - began_at

    found: dict[str, Any] = {}
    if int(os.environ["WORLD_SIZE"]) == 1:
        timed(2)
        found["seconds"] = timed(task["steps"])
    else:
        names = ("components", "stride", "warm_up", "extrapolate")
        with ps.parallelize(pipe, ps.Async(**{name: task[name] for name in names})) as handle:
            assert isinstance(handle, AsyncHandle)
            timed(2)
            found["seconds"] = timed(task["steps"])
            schedule = handle.schedules[0]
            costs = Costs(
                [b.cost for b in schedule.graph.blocks], copy_bytes_per_second=COPY_BYTES_PER_SECOND
            )
            found["crowding"] = _crowding(pipe, call, default_ranks())
            found["predicted"] = predicted_speedup(schedule, costs) / found["crowding"]
            found["bytes_sent"] = torch.tensor([record.bytes_sent for record in handle.stats.history])
    found["parameters"] = sum(parameter.numel() for parameter in pipe.unet.parameters())
    if int(os.environ["RANK"]) == 0:
        torch.save(found, args.worker.with_suffix(".answer"))
    return 0


def _crowding(pipe: Any, call: dict[str, Any], ranks: Ranks, forwards: int = 3) -> float:
    """How much longer a forward takes while all ranks make one than while this one does."""
    size, device = UNET["sample_size"], pipe.device
    inputs = torch.zeros(1, 4, size, size, device=device), 500, call["prompt_embeds"].to(device)

    @torch.no_grad()
    def timed() -> float:
        began_at = time.perf_counter()
        for _ in range(forwards):
            float(pipe.unet(*inputs, return_dict=False)[0].sum())  # waits for the device
        return time.perf_counter() - began_at

    ratios = []
    for _ in range(3):
        _meet(ranks)
        together = timed()
        for rank in range(ranks.size):
            _meet(ranks)
            if rank == ranks.rank:
                ratios.append(together / timed())
    _meet(ranks)
    everybody = ranks.all_gather(torch.tensor([statistics.median(ratios)], device=device))
    return float(everybody.max())  # the slowest is waited for


def _meet(ranks: Ranks) -> None:
    ranks.all_gather(torch.zeros(1))


def _figures(one: list[dict[str, Any]], several: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(one, several, strict=True)]
    return {
        "one_s": statistics.median(run["seconds"] for run in one),
        "all_s": statistics.median(run["seconds"] for run in several), "faster": statistics.median(ratios),
        "faster_min": min(ratios), "faster_max": max(ratios), "parameters": one[0]["parameters"],
        "predicted": statistics.median(run["predicted"] for run in several),
        "crowding": statistics.median(run["crowding"] for run in several),
        "kilobytes": float(several[0]["bytes_sent"].float().median()) / 1e3,
    }  # fmt: skip
