"""How far `parasample plan` is from the truth: predicted against measured seconds, for every window.

    python benchmarks/check_plan.py --seeds 3

Exits with 1 when a prediction is off by more than --limit. Needs an otherwise idle machine: both sides are
timed. The last column charges the measured rounds by the same cost curve: the error of the rounds alone.
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

CASES = (("ddim", 50), ("ddim", 100), ("dpm++", 50))


def main() -> int:
    """Compare, show, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=demo_model_path(), help="folder of a pipeline (default: shipped)")
    parser.add_argument(
        "--seeds", type=int, default=3, help="measured runs per window (default: %(default)s)"
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
        predictions, cost = measure_and_predict(
            pipe, sampler, steps, args.guidance, 1, Picard().tolerance, "a sneaker"
        )
        for prediction in predictions:
            case = Case(sampler, steps, Picard(window=prediction.window))
            sample = sample_sequential if prediction.window == 1 else sample_parallel
            runs = [sample(pipe, case, ["a sneaker"], args.guidance, [seed]) for seed in range(args.seeds)]
            seconds = statistics.median(run.seconds for run in runs)
            rounds = statistics.median(run.rounds for run in runs)
            evaluations = statistics.median(run.evaluations for run in runs)
            error = prediction.seconds / seconds - 1
            worst = max(worst, abs(error))
            charged = [predict_seconds(run.stats.window, cost) for run in runs if run.stats is not None]
            from_rounds = prediction.seconds / statistics.median(charged) - 1 if charged else 0.0
            worst_rounds = max(worst_rounds, abs(from_rounds))
            rows.append(
                (
                    f"{SAMPLERS[sampler][0]} {steps}", str(prediction.window), f"{prediction.rounds:.0f}",
                    f"{rounds:.0f}", f"{prediction.evaluations:.0f}", f"{evaluations:.0f}",
                    f"{prediction.seconds:.2f}", f"{seconds:.2f}", f"{error:+.0%}", f"{from_rounds:+.0%}",
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
