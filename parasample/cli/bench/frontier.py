"""The critical path when one evaluation already fills a device: rounds with 2, 4 or 8 states per round.

Each device evaluates one state per round; rounds are then model evaluations one after another, to be compared
with the number of steps. Medians over seeds; RMS as in `bench rounds`.
"""

from __future__ import annotations

import argparse

import parasample as ps
from parasample.cli.bench.results import Results, open_pipeline
from parasample.cli.bench.rounds import measure_methods
from parasample.cli.text import progress

EXAMPLE = "frontier --seeds 32"
CASES = (("ddim", 50), ("dpm++", 50), ("ddpm", 100))
COLUMNS = {
    "sampler": "{title} {steps}", "devices": "{states_per_round}", "guidance": "{guidance:g}",
    "tolerance": "{tolerance:g}",
    "rounds": "{rounds:g}", "p20-p80": "{rounds_p20:.0f}-{rounds_p80:.0f}", "fewer": "{fewer:.2f}x",
    "evaluations": "{evaluations:.0f}", "RMS": "{rms:.1e}", "RMS p80": "{rms_p80:.1e}",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--seeds", type=int, default=32, help="samples per row (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=5.0, help="(default: %(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=ps.Picard().tolerance, help="(default: %(default)s)"
    )
    parser.add_argument("--states", nargs="+", type=int, default=[2, 4, 8], help="(default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measure every row that is not in the file yet, and show them all."""
    seeds = range(4 if args.quick else args.seeds)
    cases = CASES[:1] if args.quick else CASES
    results, pipe = Results("frontier", args), open_pipeline(args)
    methods = [
        (f"{n} states", ps.Picard(window="full", states_per_round=n, tolerance=args.tolerance))
        for n in args.states
    ]
    with progress(len(cases) * len(methods), "frontier", "row") as bar:
        for sampler, steps in cases:
            measure_methods(pipe, results, "frontier", sampler, steps, args.guidance, methods, seeds, bar)
    for row in results.rows:
        row["fewer"] = row["steps"] / row["rounds"]
    results.show(COLUMNS, args.json)
    return 0
