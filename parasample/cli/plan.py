"""`parasample plan`: measure a model on this device and say which window is worth it, or that none is.

With --devices N: cut the denoiser into N components instead, and say what travels between them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import parasample as ps
from parasample.bridge.load import SAMPLERS, default_device, load_pipeline, set_sampler
from parasample.bridge.measure import measure_profile, measure_rounds, measure_sequential_step
from parasample.cli.plan_depth import run_depth
from parasample.cli.sampling import call_pipeline
from parasample.cli.text import add_common, device_name, progress, say, say_json, table, versions
from parasample.models import demo_model_path, denoiser_names
from parasample.plan.cost import CostCurve, Prediction, candidate_windows, predict_seconds, recommend
from parasample.plan.rounds import Profile, simulate

EXAMPLE = (
    "example:\n  parasample plan --sampler dpm++ --steps 50 --guidance 5 --plot plan.png\n"
    "  parasample plan --model sdxl --devices 4 --steps 50 --plot schedule.png"
)


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan", help="predict rounds and seconds by window on this device, and recommend one",
        description=__doc__,
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--sampler", choices=list(SAMPLERS), default="ddim", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="inference steps (default: %(default)s)")
    parser.add_argument(
        "--guidance", type=float, default=3.0, help="guidance scale; 1 is none (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=1, help="pictures per call (default: %(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=ps.Picard().tolerance, help="(default: %(default)s)"
    )
    parser.add_argument("--prompt", default="a sneaker", help="what to sample (default: %(default)s)")
    parser.add_argument(
        "--plot", type=Path, help="also draw seconds over window, or the devices' schedule, into this file"
    )
    parser.add_argument(
        "--devices", type=int,
        help="split the denoiser over this many devices; --model may then also be a config.json, its folder, "
             f"or one of {', '.join(denoiser_names())}",
    )  # fmt: skip
    parser.add_argument(
        "--link", type=float, default=5.0,
        help="with --devices: GB/s between two devices, one way (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--stride", type=int, default=1,
        help="with --devices: steps that a batch finishes; all but one take a device (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--shard-weights", action="store_true",
        help="with --devices: a device keeps only its own component's weights, which are made even, too",
    )  # fmt: skip
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, predict and show."""
    if args.devices is not None:
        return run_depth(args)
    device = args.device or default_device()
    pipe = load_pipeline(args.model or demo_model_path(), device)
    predictions, _ = measure_and_predict(
        pipe, args.sampler, args.steps, args.guidance, args.batch, args.tolerance, args.prompt
    )
    best = recommend(predictions)
    report = {
        "sampler": args.sampler, "steps": args.steps, "guidance": args.guidance, "batch": args.batch,
        "tolerance": args.tolerance, "device": device_name(device), "versions": versions(),
        "predictions": [vars(prediction) for prediction in predictions], "recommended_window": best.window,
        "verdict": verdict(predictions, best),
    }  # fmt: skip
    if args.plot:
        from parasample.cli.pictures import plan_figure

        title = f"{SAMPLERS[args.sampler][0]}, {args.steps} steps, batch {args.batch}"
        plan_figure(predictions, best, title, report["device"], args.plot)
    if args.json:
        say_json(report)
    else:
        _show(report, predictions, best, args.plot)
    return 0


def measure_and_predict(
    pipe: Any, sampler: str, steps: int, guidance: float, batch: int, tolerance: float, prompt: str
) -> tuple[list[Prediction], CostCurve]:
    """Sequential sampling (window 1) and every candidate window, from some rounds of each and a pilot run."""
    set_sampler(pipe, sampler, steps)
    windows = candidate_windows(steps)

    def call() -> object:
        return call_pipeline(pipe, [prompt] * batch, steps, guidance, list(range(batch)))

    with progress(len(windows) + 4, "plan", "measurement") as bar:
        call_pipeline(pipe, [prompt] * batch, 2, guidance, list(range(batch)))  # warm up
        bar.update()
        bar.set_description("timing a sequential step")
        step_seconds = measure_sequential_step(pipe, call)
        bar.update()
        bar.set_description("timing rounds of every size")
        cost = measure_rounds(pipe, call, [1, *windows], bar.update)
        bar.set_description("recording a pilot run")
        profile, outside = measure_profile(pipe, call, pilot_window(steps), tolerance)
        bar.update()
    sequential = Prediction(1, steps, steps * batch, steps * step_seconds)
    return [
        sequential,
        *(predict(profile, cost, outside, window, tolerance, batch) for window in windows),
    ], cost


def pilot_window(steps: int) -> int:
    """The pilot's window: everything at once, within reason, so that every row is seen from afar."""
    return min(steps, 128)


def predict(
    profile: Profile, cost: CostCurve, outside: float, window: int, tolerance: float, batch: int
) -> Prediction:
    """One window's prediction; `cost` is by states of one sample at this batch, `outside` is seconds."""
    evaluations = simulate(profile, window, tolerance)
    seconds = outside + predict_seconds(evaluations, cost)
    return Prediction(window, len(evaluations), sum(evaluations) * batch, seconds)


def verdict(predictions: list[Prediction], best: Prediction) -> str:
    """The recommendation in words."""
    sequential = predictions[0]
    fewest = min(predictions, key=lambda prediction: prediction.rounds)
    rounds = f"{sequential.rounds:.0f} steps take {fewest.rounds:.0f} rounds at window {fewest.window}"
    if best.window == 1:
        parallel = min(predictions[1:], key=lambda prediction: prediction.seconds)
        return (
            f"Sample sequentially here: the best window, {parallel.window}, would take "
            f"{parallel.seconds / sequential.seconds:.2g}x as long, because this device charges for a round "
            f"nearly by the state. {rounds}: more devices, or a device that one step leaves idle, would "
            "change that."
        )
    return (
        f"Use ps.Picard(window={best.window}): {sequential.seconds / best.seconds:.2g}x as fast as "
        f"sequential sampling ({best.seconds:.2f} s instead of {sequential.seconds:.2f} s). {rounds}."
    )


def _show(report: dict[str, Any], predictions: list[Prediction], best: Prediction, plot: Path | None) -> None:
    sequential = predictions[0].seconds
    rows = []
    for prediction in predictions:
        name = "sequential" if prediction.window == 1 else str(prediction.window)
        figures = (f"{prediction.rounds:.0f}", f"{prediction.evaluations:.0f}", f"{prediction.seconds:.2f}")
        mark = "<- best" if prediction is best else ""
        rows.append((name, *figures, f"{sequential / prediction.seconds:.2f}x", mark))
    title = f"{SAMPLERS[report['sampler']][0]}, {report['steps']} steps, batch {report['batch']}, " \
            f"guidance {report['guidance']:g}, {report['device']}"  # fmt: skip
    say(title)
    say()
    say(table(("window", "rounds", "evaluations", "seconds", "speedup", ""), rows))
    say()
    say(report["verdict"], wrap=True)
    if plot:
        say(f"Wrote {plot}.")


__all__ = ["add_parser", "measure_and_predict", "run"]
