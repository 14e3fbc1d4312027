"""What a tolerance costs in fidelity, beside the yardstick: fewer sequential steps at as many rounds.

Each row samples the same seeds and prompts. Frechet distance is between the classifier's features of a row
and of sequential sampling; sequential sampling with other seeds gives the noise floor. RMS is of the final
latents.
"""

from __future__ import annotations

import argparse
from typing import Any

import parasample as ps
from parasample.bridge.load import SAMPLERS
from parasample.cli.bench.judge import Judge, Judged, Sample, frechet_distance
from parasample.cli.bench.results import Results, open_pipeline, spread
from parasample.cli.sampling import (
    Case,
    relative_rms,
    sample_parallel,
    sample_sequential,
)
from parasample.cli.text import progress

EXAMPLE = "fidelity --samples 2000 --window full"
TOLERANCES = (0.001, 0.01, 0.03, 0.1, 0.3)
OTHER_SEEDS = 1_000_000  # the second sequential set starts here
COLUMNS = {
    "method": "{label}", "tolerance": "{tolerance_text}", "rounds": "{rounds:g}",
    "evaluations": "{evaluations:.0f}",
    "Frechet": "{frechet:.1e}", "agreement": "{agreement:.1%}",
    "RMS": "{rms:.1e}", "RMS p80": "{rms_p80:.1e}",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--samples", type=int, default=2000, help="samples per row (default: %(default)s)")
    parser.add_argument("--sampler", choices=list(SAMPLERS), default="ddim", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="(default: %(default)s)")
    parser.add_argument("--window", default="16", help='a number or "full" (default: %(default)s)')
    parser.add_argument("--batch", type=int, default=50, help="samples per call (default: %(default)s)")
    parser.add_argument("--tolerances", nargs="+", type=float, default=list(TOLERANCES))
    parser.add_argument("--fewer", nargs="+", type=int, help="yardstick steps (default: our rows' rounds)")


def run(args: argparse.Namespace) -> int:
    """Measure row by row, resuming from the file; then show and draw them."""
    if args.quick:
        args.samples, args.batch = min(args.samples, 40), min(args.batch, 20)
        args.tolerances = args.tolerances[1:4:2]
    results = Results("fidelity", args)
    bench = _Fidelity(args, open_pipeline(args), results)
    rows = 2 + 3 * len(args.tolerances)
    with progress(rows * args.samples, "fidelity", "sample") as bar:
        bench.bar = bar
        bench.run()
    for row in results.rows:
        row["tolerance_text"] = "-" if row["tolerance"] is None else f"{row['tolerance']:g}"
    results.show(COLUMNS, args.json, left=1)
    from parasample.cli.pictures import fidelity_figure

    title = f"{SAMPLERS[args.sampler][0]}, {args.steps} steps, guidance {args.guidance:g}"
    fidelity_figure(results.rows, args.steps, title, results.path.with_suffix(".png"))
    return 0


class _Fidelity:
    """One run of the benchmark: its settings, and the reference that every row is compared with."""

    def __init__(self, args: argparse.Namespace, pipe: Any, results: Results) -> None:
        self.args, self.pipe, self.results = args, pipe, results
        self.window = args.window if args.window == "full" else int(args.window)
        self.judge = Judge(pipe)
        self.bar: Any = None
        self._reference: Judged | None = None

    def run(self) -> None:
        args = self.args
        self._row("sequential, other seeds", None, args.steps, self._sequential(args.steps), OTHER_SEEDS)
        rounds = []
        for tolerance in args.tolerances:
            ours = ps.Picard(window=self.window, tolerance=tolerance)
            rounds.append(self._row("ours", tolerance, args.steps, self._parallel(ours))["rounds"])
        for tolerance in args.tolerances:
            published = ps.Picard(
                window=self.window, tolerance=tolerance, update="published", stopping="published"
            )
            self._row("published", tolerance, args.steps, self._parallel(published))
        fewer = args.fewer or sorted({min(max(round(r), 2), args.steps - 1) for r in rounds})
        self.bar.total = (2 + 2 * len(args.tolerances) + len(fewer)) * args.samples
        for steps in fewer:
            self._row("fewer steps", None, steps, self._sequential(steps))

    def _row(
        self, label: str, tolerance: float | None, steps: int, sample: Sample, offset: int = 0
    ) -> dict[str, Any]:
        args = self.args
        settings = {
            "bench": "fidelity", "label": label, "tolerance": tolerance, "sampler": args.sampler,
            "row_steps": steps,
            "steps": args.steps, "guidance": args.guidance, "window": self.window, "samples": args.samples,
        }  # fmt: skip
        self.bar.set_description(label if tolerance is None else f"{label}, tolerance {tolerance:g}")
        known = self.results.find(settings)
        if known is not None:
            self.bar.update(args.samples)
            return known
        reference = self._sequential_reference()
        self.bar.set_description(label if tolerance is None else f"{label}, tolerance {tolerance:g}")
        found = self._judge(sample, offset)
        errors = relative_rms(found.latents, reference.latents).tolist()
        figures = {
            "frechet": frechet_distance(found.features, reference.features), "agreement": found.agreement,
            "reference_agreement": reference.agreement, "evaluations": found.evaluations,
        }  # fmt: skip
        return self.results.add(settings, figures | spread(found.rounds, "rounds") | spread(errors, "rms"))

    def _sequential_reference(self) -> Judged:
        if self._reference is None:
            self.bar.set_description("sequential")
            self._reference = self._judge(self._sequential(self.args.steps), 0)
        return self._reference

    def _sequential(self, steps: int) -> Sample:
        case = Case(self.args.sampler, steps, ps.Picard())
        return lambda *call: sample_sequential(self.pipe, case, *call)

    def _parallel(self, method: ps.Picard) -> Sample:
        case = Case(self.args.sampler, self.args.steps, method).for_steps(self.args.steps)
        return lambda *call: sample_parallel(self.pipe, case, *call)

    def _judge(self, sample: Sample, offset: int) -> Judged:
        return self.judge(
            sample, self.args.guidance, self.args.samples, self.args.batch, offset, self.bar.update
        )


__all__ = ["add_options", "run"]
