"""`parasample plan --devices N`: how to cut a denoiser into components, and what travels between them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from parasample.bridge.meta import graph_from_config, read_config
from parasample.cli.text import progress, say, say_json, table
from parasample.errors import ConfigError
from parasample.models import demo_model_path, denoiser_config, denoiser_names
from parasample.plan.blocks import BlockGraph
from parasample.plan.partition import (
    Split,
    broadcast_bytes,
    choose_split,
    possible_splits,
    report,
    transfers,
)
from parasample.plan.partition.stages import hops
from parasample.plan.schedule import Schedule
from parasample.plan.simulate import Costs, critical_path, simulate

WARM_UP = 3  # sequential steps before the asynchronous ones, as in AsyncDiff's tables
_DRAWN_WARM_UP, _DRAWN_BATCHES = 1, 8  # what fits a picture


def run_depth(args: argparse.Namespace) -> int:
    """Trace, search and show."""
    components = args.devices - args.stride + 1
    if args.stride < 1 or (components < 1 and args.stride > 1):
        raise ConfigError(
            f"stride={args.stride} takes {args.stride - 1} devices on top of one per component, found "
            f"devices={args.devices}; pass --stride 1 to {max(args.devices, 1)}"
        )
    with progress(2, "plan", "part") as bar:
        bar.set_description("tracing the denoiser")
        graph = graph_from_config(read_config(model_path(args.model)))
        bar.update()
        bar.set_description("searching for splits")
        began_at = time.perf_counter()
        splits = possible_splits(graph, components, even_weights=args.shard_weights)
        search_s = time.perf_counter() - began_at
        bar.update()
    link = args.link * 1e9
    chosen = choose_split(graph, splits, bytes_per_second=link)
    title = str(args.model or "the shipped model")
    result = summary(graph, chosen, splits, args.steps, args.stride) | {
        "model": title, "devices": args.devices, "search_s": search_s,
    }  # fmt: skip
    if args.plot:
        draw(graph, chosen, result, link, args.stride, args.plot)
    if args.json:
        say_json(result)
    else:
        _show(result, args.plot)
    return 0


def model_path(model: Path | None) -> Path:
    """A short name's configuration, or the path itself; the shipped model by default."""
    if model is None:
        return demo_model_path()
    return denoiser_config(str(model)) if str(model) in denoiser_names() else model


def summary(
    graph: BlockGraph, split: Split, splits: tuple[Split, ...], steps: int, stride: int = 1
) -> dict[str, Any]:
    """Everything that is shown, as plain numbers: shares of the whole, bytes per step."""
    found = report(graph, split)
    copied = (stride - 1) * found.bytes_received[-1]  # by the copies of the last component
    edges: dict[tuple[int, int], int] = {}
    for transfer in transfers(graph, split)[:-1]:
        for reader in transfer.readers:
            edge = (transfer.source, reader)
            edges[edge] = edges.get(edge, 0) + graph.blocks[transfer.block].output_bytes
    components = [
        {
            "component": index, "compute": found.compute_shares[index], "weights": found.weight_shares[index],
            "bytes_sent": found.bytes_sent[index], "bytes_received": found.bytes_received[index],
            "blocks": ranges(graph, split, index),
        }
        for index in range(split.components)
    ]  # fmt: skip
    return {
        "steps": steps, "blocks": len(graph), "teraflops": graph.total_cost / 1e12,
        "weight_bytes": graph.total_weight_bytes, "components": components,
        "edges": [{"source": s, "reader": r, "bytes": size} for (s, r), size in sorted(edges.items())],
        "bytes_per_step": round((found.hidden_bytes + copied) / stride),
        "output_bytes": graph.blocks[-1].output_bytes * (split.components + stride - 2),
        "broadcast_bytes": broadcast_bytes(graph, split.components),
        "stride": stride,
        "predicted_speedup": speedup(graph, split, steps, stride),
        "trade_off": [
            {
                "max_compute": r.max_compute, "bytes_per_step": r.hidden_bytes, "hops": hops(graph, s),
                "chosen": s is split,
            }
            for s in splits for r in [report(graph, s)]
        ],
    }  # fmt: skip


def speedup(graph: BlockGraph, split: Split, steps: int, stride: int = 1) -> float:
    """Of a whole run over one device, with every exchange hidden behind compute."""
    return steps / critical_path(Schedule(graph, split, steps, stride, min(WARM_UP, steps)))


def ranges(graph: BlockGraph, split: Split, component: int) -> list[str]:
    """A component's own blocks as runs of neighbours: `down_blocks.0.resnets.0 - mid_block.resnets.1`."""
    own = [
        (block.label, owners == (component,))
        for block, owners in zip(graph.blocks[:-1], split.owners, strict=False)
        if len(owners) == 1 and not block.hands_on
    ]
    runs: list[list[str]] = []
    before = False
    for label, mine in own:
        if mine and not before:
            runs.append([])
        if mine:
            runs[-1].append(label)
        before = mine
    return [run[0] if len(run) == 1 else f"{run[0]} - {run[-1]}" for run in runs]


def draw(
    graph: BlockGraph, split: Split, result: dict[str, Any], link: float, stride: int, path: Path
) -> None:
    """A short run as a picture; operations at 1e14 per second set the exchange against compute."""
    from parasample.cli.schedule_picture import schedule_figure
    from parasample.plan.partition.find import FLOPS_PER_SECOND

    drawn, rest = _DRAWN_WARM_UP + _DRAWN_BATCHES * stride, split.components * stride
    schedule = Schedule(graph, split, drawn + rest, stride, _DRAWN_WARM_UP)
    costs = Costs([block.cost / FLOPS_PER_SECOND for block in graph.blocks], bytes_per_second=link)
    notes = [
        f"{part['compute']:.0%} of compute, {part['weights']:.0%} of weights" for part in result["components"]
    ]
    count = schedule.num_ranks
    title = f"{result['model']} on {count} device{'s' if count > 1 else ''}"
    subtitle = (
        f"The first {drawn} steps; a run of {result['steps']} is "
        f"{result['predicted_speedup']:.2f}x as fast as on one device. "
        f"{_megabytes(result['bytes_per_step'])} MB of hidden states travel per step at "
        f"{link / 1e9:g} GB/s."
    )
    seconds = graph.total_cost / FLOPS_PER_SECOND
    schedule_figure(schedule, simulate(schedule, costs), drawn, seconds, title, subtitle, notes, path)


def _show(result: dict[str, Any], plot: Path | None) -> None:
    say(f"{result['model']}: {result['blocks']} blocks, {result['teraflops']:.3g} TFLOP per step, "
        f"{result['weight_bytes'] / 1e9:.3g} GB of weights in half precision; "
        f"searched for {result['search_s']:.1f} s")  # fmt: skip
    say()
    rows = [
        (
            str(part["component"]), f"{part['compute']:.1%}", f"{part['weights']:.1%}",
            _megabytes(part["bytes_sent"]), _megabytes(part["bytes_received"]),
        )
        for part in result["components"]
    ]  # fmt: skip
    say(table(("component", "compute", "weights", "sends MB", "receives MB"), rows))
    say()
    for part in result["components"]:
        say(f"{part['component']}: {', '.join(part['blocks'])}", wrap=True)
    if result["edges"]:
        say()
        edges = [(f"{e['source']} -> {e['reader']}", _megabytes(e["bytes"])) for e in result["edges"]]
        say(table(("from -> to", "MB per step"), edges))
        say()
        say(table(("largest compute share", "MB per step", "hops", ""),
                  [(f"{point['max_compute']:.1%}", _megabytes(point["bytes_per_step"]), str(point["hops"]),
                    "<- chosen" if point["chosen"] else "") for point in result["trade_off"]]))  # fmt: skip
    say()
    say(_verdict(result), wrap=True)
    if plot:
        say(f"Wrote {plot}.")


def _verdict(result: dict[str, Any]) -> str:
    if result["devices"] == 1:
        return "One device runs everything: nothing travels, and nothing is gained."
    stride = result["stride"]
    batches = f" The tables are per batch of {stride} steps, with one copy of the last component."
    return (
        f"{_megabytes(result['bytes_per_step'])} MB travel per step, instead of "
        f"{_megabytes(result['broadcast_bytes'])} MB if the output of each of the denoiser's modules were "
        f"broadcast; the denoiser's output adds {_megabytes(result['output_bytes'])} MB. A run of "
        f"{result['steps']} steps, {WARM_UP} of them to warm up, is predicted to be "
        f"{result['predicted_speedup']:.2f}x as fast as on one device, with the exchange hidden behind "
        "compute." + (batches if stride > 1 else "")
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}" if size >= 1e5 or not size else f"{size / 1e6:.2g}"


__all__ = ["run_depth"]
