"""`parasample demo`: sample the shipped model one step at a time and in parallel, and compare."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import parasample as ps
from parasample.bridge.depth import AsyncHandle
from parasample.bridge.load import SAMPLERS, default_device, load_pipeline, set_sampler
from parasample.cli.pace import Programme, faster_threads, fit
from parasample.cli.sampling import (
    Case,
    Sampled,
    call_pipeline,
    decode,
    relative_rms,
    sample_parallel,
    sample_sequential,
)
from parasample.cli.text import add_common, device_name, progress, say, say_json, table, versions
from parasample.models import demo_model_path
from parasample.plan.simulate import critical_path

EXAMPLE = 'example:\n  parasample demo --prompt "a sneaker" --prompt "a dress" --seed 3'
PROMPTS = ["a sneaker", "a dress", "a bag", "an ankle boot"]
CASES = (("ddpm", 1000), ("ddim", 100), ("dpm++", 50))
# A GPU evaluates a whole trajectory of the demo model for little more than one state; of DDPM's 1000 steps
# the paper's 64. A CPU charges by the state beyond a dozen: wider windows take fewer rounds, but longer.
WINDOWS: dict[str, dict[str, Any]] = {
    "cuda": {"ddpm": 64, "ddim": "full", "dpm++": "full"},
    "cpu": {"ddpm": 16, "ddim": 16, "dpm++": 16},
}
TIMED_STEPS = 10  # what the estimate of the demo's duration rests on
DEPTH = ps.Async(components=2, warm_up=2)
TRAJECTORY = Case("ddim", 100, ps.Picard(window="full", record=True))


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo", help="sample the shipped model both ways: table, pictures, trajectory", description=__doc__,
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--prompt", action="append", help=f"repeat for several (default: {', '.join(PROMPTS)})"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first prompt (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("demo_output"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="two prompts and a tenth of the steps")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sample, write the pictures and show the table."""
    began_at = time.perf_counter()
    pipe = load_pipeline(args.model or demo_model_path(), args.device or default_device())

    def few_steps() -> None:
        call_pipeline(pipe, PROMPTS[:2], 2, args.guidance, [args.seed, args.seed + 1])

    with faster_threads(few_steps) if pipe.device.type == "cpu" else nullcontext():
        few_steps()  # the first call on a device is slow
        return _run(pipe, _programme(pipe, args, began_at), args)


def _run(pipe: Any, programme: Programme, args: argparse.Namespace) -> int:
    device = str(pipe.device)
    prompts, cases, trajectory = programme.prompts, programme.cases, programme.trajectory
    total = len(prompts) * (2 * sum(case.steps for case in cases) + cases[-1].steps) + trajectory.steps
    with progress(total, "demo") as bar:
        results = [_both(pipe, case, prompts, args, bar) for case in cases]
        bar.set_description("recording a trajectory")
        recorded = sample_parallel(pipe, trajectory, prompts[:1], args.guidance, [args.seed], bar.update)
        bar.set_description(f"{SAMPLERS[cases[-1].sampler][0]} {cases[-1].steps}, {DEPTH.components} devices")
        depth, path = _in_depth(pipe, cases[-1], prompts, args, bar)
    rows = [row for case, pair in zip(cases, results, strict=True) for row in _rows(case, *pair)]
    verdict = _verdict(rows)
    rows.append(_depth_row(cases[-1], results[-1][0], depth, path))
    report = {
        "prompts": prompts, "seed": args.seed, "guidance": args.guidance, "device": device_name(device),
        "versions": versions(), "rows": rows, "verdict": verdict,
        "note": programme.note,
    }  # fmt: skip

    args.output.mkdir(parents=True, exist_ok=True)
    from parasample.cli.pictures import images_figure, trajectory_figure

    pictured = [*(part for pair in results for part in pair), depth]
    strips = [(row, decode(pipe, torch.cat([s.latents for s in samples]))) for row, samples in
              zip(rows, pictured, strict=True)]  # fmt: skip
    images_figure(strips, prompts, args.output / "images.png")
    assert recorded.stats is not None
    trajectory_figure(
        pipe, recorded.stats, recorded.latents.shape, trajectory, prompts[0], args.output / "trajectory.png"
    )
    (args.output / "table.json").write_text(json.dumps(report, indent=2) + "\n")
    if args.json:
        say_json(report)
    else:
        _show(report, args.output)
    return 0


def _programme(pipe: Any, args: argparse.Namespace, began_at: float) -> Programme:
    """What is sampled: with windows that suit the device, and as much as fits into two minutes."""
    windows = WINDOWS["cuda" if pipe.device.type == "cuda" else "cpu"]
    cases = [Case(sampler, steps, ps.Picard(window=windows[sampler])) for sampler, steps in CASES]
    if args.quick:
        cases = [case.for_steps(max(case.steps // 10, 10)) for case in cases]
        return Programme(args.prompt or PROMPTS[:2], cases, TRAJECTORY.for_steps(20))
    _, seconds = call_pipeline(pipe, PROMPTS[:1], TIMED_STEPS, args.guidance, [args.seed])
    asked = Programme(args.prompt or PROMPTS, cases, TRAJECTORY)
    spent_s = time.perf_counter() - began_at
    return fit(asked, seconds / TIMED_STEPS, args.prompt is not None, spent_s)


def _both(
    pipe: Any, case: Case, prompts: list[str], args: argparse.Namespace, bar: tqdm
) -> tuple[list[Sampled], list[Sampled]]:
    """Every prompt by itself, sequentially and in parallel: what one user waits for one picture."""
    found = []
    for name, sampler in (("sequential", sample_sequential), ("parallel", sample_parallel)):
        bar.set_description(f"{SAMPLERS[case.sampler][0]} {case.steps}, {name}")
        found.append(
            [
                sampler(pipe, case, [prompt], args.guidance, [args.seed + index], bar.update)
                for index, prompt in enumerate(prompts)
            ]
        )
    return found[0], found[1]


def _rows(case: Case, sequential: list[Sampled], parallel: list[Sampled]) -> list[dict[str, Any]]:
    """Both rows of the table for one case: medians over the prompts."""
    errors = [float(relative_rms(p.latents, s.latents)) for p, s in zip(parallel, sequential, strict=True)]
    baseline = statistics.median(s.seconds for s in sequential)
    rows = []
    for method, samples in (("sequential", sequential), ("parallel", parallel)):
        seconds = statistics.median(s.seconds for s in samples)
        rows.append(
            {
                "sampler": SAMPLERS[case.sampler][0], "steps": case.steps, "method": method,
                "window": case.method.window if method == "parallel" else 1,
                "rounds": statistics.median_high(s.rounds for s in samples),
                "evaluations": statistics.median_high(s.evaluations for s in samples),
                "seconds": seconds, "speedup": baseline / seconds,
                "rms": statistics.median(errors) if method == "parallel" else 0.0,
            }
        )  # fmt: skip
    return rows


def _in_depth(
    pipe: Any, case: Case, prompts: list[str], args: argparse.Namespace, bar: tqdm
) -> tuple[list[Sampled], float]:
    """Every prompt, the denoiser cut over devices that this process plays; its time in sequential steps."""
    found, paths = [], []
    set_sampler(pipe, case.sampler, case.steps)
    with AsyncHandle(pipe, DEPTH, emulated=True) as handle:
        for index, prompt in enumerate(prompts):
            seeds = [args.seed + index]
            latents, seconds = call_pipeline(pipe, [prompt], case.steps, args.guidance, seeds, bar.update)
            found.append(Sampled(latents, seconds, case.steps, case.steps))
            paths.append(critical_path(handle.schedules[0]))
    return found, statistics.median(paths)


def _depth_row(case: Case, sequential: list[Sampled], depth: list[Sampled], path: float) -> dict[str, Any]:
    errors = [float(relative_rms(d.latents, s.latents)) for d, s in zip(depth, sequential, strict=True)]
    return {
        "sampler": SAMPLERS[case.sampler][0], "steps": case.steps, "method": f"{DEPTH.num_ranks} devices",
        "window": "-", "rounds": round(path), "evaluations": case.steps, "seconds": None,
        "speedup": case.steps / path, "rms": statistics.median(errors),
    }  # fmt: skip


def _verdict(rows: list[dict[str, Any]]) -> str:
    """One honest line: what the device charges for a batch, and what that makes of the rounds."""
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    sequential, parallel = max(pairs, key=lambda pair: pair[0]["rounds"] / pair[1]["rounds"])
    one = sequential["seconds"] / sequential["evaluations"]
    states = parallel["evaluations"] / parallel["rounds"]
    price = parallel["seconds"] / parallel["rounds"] / one
    fewer = sequential["rounds"] / parallel["rounds"]
    return (
        f"{sequential['sampler']} {sequential['steps']} needs {fewer:.0f}x fewer rounds, with "
        f"{parallel['evaluations'] / sequential['evaluations']:.1f}x the evaluations. On this device "
        f"a round of "
        f"{states:.0f} states costs {price:.1f}x one step, so it runs {parallel['speedup']:.2g}x as "
        f"fast; where a "
        f"round costs no more than a step (a GPU that one step leaves mostly idle, or several GPUs) "
        f"the same rounds "
        f"would run {fewer:.0f}x as fast. `parasample plan` compares windows."
    )


def _show(report: dict[str, Any], output: Path) -> None:
    headers = ("sampler", "method", "window", "rounds", "evaluations", "seconds", "speedup", "RMS error")
    lines = []
    for row in report["rows"]:
        lines.append(
            (
                f"{row['sampler']} {row['steps']}", row["method"], str(row["window"]), f"{row['rounds']:g}",
                f"{row['evaluations']:g}", "-" if row["seconds"] is None else f"{row['seconds']:.2f}",
                f"{row['speedup']:.2f}x", "-" if row["method"] == "sequential" else f"{row['rms']:.1e}",
            )
        )  # fmt: skip
    say(table(headers, lines, left=2))
    say()
    count = len(report["prompts"])
    medians = "one prompt" if count == 1 else f"medians over {count} prompts"
    say(f"One picture at a time, {medians}; {report['device']}; RMS error of the final "
        "latents against sequential sampling, in units of their standard deviation.", wrap=True)  # fmt: skip
    say(f"{DEPTH.num_ranks} devices: ps.Async cuts the denoiser in {DEPTH.components}; this process plays "
        "them all, so that rounds (in sequential steps) and speedup are what the measured blocks promise.",
        wrap=True)  # fmt: skip
    if report["note"]:
        say()
        say(report["note"], wrap=True)
    say()
    say(report["verdict"], wrap=True)
    say()
    say(f"Wrote {output / 'images.png'}, {output / 'trajectory.png'} and {output / 'table.json'}.")


__all__ = ["add_parser", "run"]
