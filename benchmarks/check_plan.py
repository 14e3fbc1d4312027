"""How far `parasample plan` is from the truth: predicted against measured seconds, for every window.

    python benchmarks/check_plan.py --seeds 5

Exits with 1 when a prediction is off by more than --limit. Needs an otherwise idle machine: both sides are
timed. The last column charges the measured rounds by the same cost curve, beside what was measured
outside of rounds: the error of the predicted rounds alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from parasample import Picard
from parasample.bridge.load import SAMPLERS, default_device, load_pipeline
from parasample.cli.plan import measure_and_predict
from parasample.cli.sampling import Case, sample_parallel, sample_sequential
from parasample.cli.text import say, table
from parasample.models import demo_model_path
from parasample.plan.cost import predict_seconds

CASES = (("ddim", 50), ("ddim", 100), ("ddpm", 100), ("dpm++", 50))


def main() -> int:
    """Compare, show, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=demo_model_path(), help="folder of a pipeline (default: shipped)")
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        help="predictions and runs per window; medians count (default: %(default)s)",
    )
    parser.add_argument("--guidance", type=float, default=3.0, help="(default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=0.15, help="largest relative error (default: %(default)s)"
    )
    parser.add_argument(
        "--ignore-clock", action="store_true",
        help="judge the predicted rounds at their measured price only: for a machine that is not idle",
    )  # fmt: skip
    args = parser.parse_args()
    pipe = load_pipeline(args.model, default_device())
    rows, worst, worst_rounds = [], 0.0, 0.0
    for sampler, steps in CASES:
        found: dict[int, list[tuple[float, ...]]] = {}
        for seed in range(args.seeds):  # each with a measurement of its own: a machine's speed drifts
            predictions, cost = measure_and_predict(
                pipe, sampler, steps, args.guidance, 1, Picard().tolerance, "a sneaker"
            )
            for prediction in predictions:
                case = Case(sampler, steps, Picard(window=prediction.window))
                sample = sample_sequential if prediction.window == 1 else sample_parallel
                run = sample(pipe, case, ["a sneaker"], args.guidance, [seed])
                seconds, rounds, evaluations = prediction.seconds, prediction.rounds, prediction.evaluations
                charged = seconds
                if run.stats is not None:
                    charged = run.seconds - sum(record.seconds for record in run.stats.history)
                    charged += predict_seconds(run.stats.window, cost)
                found.setdefault(prediction.window, []).append(
                    (rounds, run.rounds, evaluations, run.evaluations, seconds, run.seconds, charged)
                )
        for window, runs in found.items():
            *counts, seconds, measured, charged = (
                statistics.median(column) for column in zip(*runs, strict=True)
            )
            error, from_rounds = seconds / measured - 1, seconds / charged - 1
            worst, worst_rounds = max(worst, abs(error)), max(worst_rounds, abs(from_rounds))
            rows.append(
                (
                    f"{SAMPLERS[sampler][0]} {steps}", str(window), *(f"{count:.0f}" for count in counts),
                    f"{seconds:.2f}", f"{measured:.2f}", f"{error:+.0%}", f"{from_rounds:+.0%}",
                )
            )  # fmt: skip
    headers = (
        "sampler", "window", "rounds", "measured", "evaluations", "measured", "seconds", "measured", "error",
        "of rounds alone",
    )  # fmt: skip
    say(table(headers, rows))
    say(f"\nworst error {worst:.0%} ({worst_rounds:.0%} without the clock's), limit {args.limit:.0%}")
    return int((worst_rounds if args.ignore_clock else worst) > args.limit)


if __name__ == "__main__":
    sys.exit(main())
