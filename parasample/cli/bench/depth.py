"""What depth costs in fidelity: components and strides, as published and ahead, beside fewer steps.

Ranks are played in one process, which gives the numbers that real ranks give. "path" is how many sequential
steps take as long as the run, by the measured costs of its blocks, and "speedup" what that makes of all
steps; the yardstick samples sequentially with that many. Frechet distance and agreement are as in `bench
fidelity`, RMS is of the final latents. Also draws error over time, beside the rows.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import parasample as ps
from parasample.bridge.depth import AsyncHandle
from parasample.bridge.load import SAMPLERS, set_sampler
from parasample.cli.bench.judge import Judge, Judged, Sample, frechet_distance
from parasample.cli.bench.results import Results, open_pipeline, spread
from parasample.cli.sampling import Case, Sampled, call_pipeline, relative_rms, sample_sequential
from parasample.cli.text import progress
from parasample.plan.schedule import Schedule
from parasample.plan.simulate import critical_path

EXAMPLE = "depth --samples 200 --cases dpm++-50 --components 2 3 4 --warm-up 1 3"
RULES: dict[str, str | None] = {"published": None, "auto": "auto"}
COLUMNS = {
    "sampler": "{title} {steps}", "rule": "{label}", "N": "{components}", "S": "{stride}",
    "warm-up": "{warm_up}", "path": "{path:.1f}", "speedup": "{speedup:.2f}x", "RMS": "{rms:.1e}",
    "Frechet": "{frechet:.1e}", "agreement": "{agreement:.1%}", "kB a step": "{kilobytes:.0f}",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--samples", type=int, default=200, help="samples per row (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=50, help="samples per call (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=1.0, help="(default: %(default)s)")
    parser.add_argument(
        "--cases", nargs="+", default=["dpm++-50", "ddim-50", "ddpm-100"], help="samplers with their steps"
    )
    parser.add_argument("--components", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--strides", nargs="+", type=int, default=[1])
    parser.add_argument("--warm-up", nargs="+", type=int, default=[1, 3])


def run(args: argparse.Namespace) -> int:
    """Measure row by row, resuming from the file; then show them."""
    if args.quick:
        args.samples, args.batch, args.cases = 20, 20, args.cases[:1]
        args.components, args.warm_up = args.components[:1], args.warm_up[:1]
    results = Results("depth", args)
    bench = _Depth(args, open_pipeline(args), results)
    combinations = len(args.components) * len(args.strides) * len(args.warm_up)
    with progress(len(args.cases) * (1 + 3 * combinations) * args.samples, "depth", "sample") as bar:
        bench.bar = bar
        for case in args.cases:
            sampler, _, steps = case.rpartition("-")
            bench.case(sampler, int(steps))
    from parasample.cli.depth_picture import depth_figure

    depth_figure(results.rows, results.path.with_suffix(".png"))
    for row in results.rows:
        row["speedup"] = row["steps"] / row["path"]
    results.show(COLUMNS, args.json)
    return 0


class _Depth:
    """One run of the benchmark."""

    def __init__(self, args: argparse.Namespace, pipe: Any, results: Results) -> None:
        self.args, self.pipe, self.results = args, pipe, results
        self.judge = Judge(pipe)
        self.bar: Any = None
        self._reference: Judged | None = None

    def case(self, sampler: str, steps: int) -> None:
        self._reference = None
        for components in self.args.components:
            for stride in self.args.strides:
                for warm_up in self.args.warm_up:
                    rows = [
                        self._row(label, sampler, steps, components, stride, warm_up, rule)
                        for label, rule in RULES.items()
                    ]
                    self._yardstick(sampler, steps, rows[-1])
        self.bar.update(self.args.samples if self._reference is None else 0)

    def _row(
        self,
        label: str,
        sampler: str,
        steps: int,
        components: int,
        stride: int,
        warm_up: int,
        rule: str | None,
    ) -> dict[str, Any]:
        config = ps.Async(components, stride, warm_up, extrapolate=rule)  # type: ignore[arg-type]
        schedules: list[Schedule] = []
        sent: list[int] = []

        def sample(prompts: list[str], guidance: float, seeds: list[int]) -> Sampled:
            set_sampler(self.pipe, sampler, steps)
            with AsyncHandle(self.pipe, config, emulated=True) as handle:
                latents, seconds = call_pipeline(self.pipe, prompts, steps, guidance, seeds)
                schedules.append(handle.schedules[0])
                sent.append(handle.stats.history[steps // 2].bytes_sent // len(seeds))
            return Sampled(latents, seconds, steps, steps * len(seeds))

        settings = self._settings(label, sampler, steps, components, stride, warm_up)
        return self._measured(
            settings,
            sample,
            lambda: {"path": statistics.median(map(critical_path, schedules)), "kilobytes": sent[0] / 1e3},
        )

    def _yardstick(self, sampler: str, steps: int, row: dict[str, Any]) -> None:
        """Sequential sampling that takes as long as `row`."""
        fewer = max(round(row["path"]), 2)

        def sample(prompts: list[str], guidance: float, seeds: list[int]) -> Sampled:
            return sample_sequential(self.pipe, Case(sampler, fewer, ps.Picard()), prompts, guidance, seeds)

        place = row["components"], row["stride"], row["warm_up"]
        settings = self._settings("fewer steps", sampler, steps, *place) | {"row_steps": fewer}
        self._measured(settings, sample, lambda: {"path": float(fewer), "kilobytes": 0.0})

    def _settings(self, label: str, sampler: str, steps: int, *place: int) -> dict[str, Any]:
        return {
            "bench": "depth", "label": label, "sampler": sampler, "title": SAMPLERS[sampler][0],
            "steps": steps,
            "components": place[0], "stride": place[1], "warm_up": place[2], "guidance": self.args.guidance,
            "samples": self.args.samples,
        }  # fmt: skip

    def _measured(self, settings: dict[str, Any], sample: Sample, more: Any) -> dict[str, Any]:
        known = self.results.find(settings)
        if known is not None:
            self.bar.update(self.args.samples)
            return known
        if self._reference is None:
            self._reference = self._judge(
                lambda *call: sample_sequential(
                    self.pipe, Case(settings["sampler"], settings["steps"], ps.Picard()), *call
                )
            )
        self.bar.set_description(f"{settings['label']}, N={settings['components']}")
        found, reference = self._judge(sample), self._reference
        figures = {
            "frechet": frechet_distance(found.features, reference.features), "agreement": found.agreement,
            "reference_agreement": reference.agreement,
        } | more()  # fmt: skip
        errors = relative_rms(found.latents, reference.latents).tolist()
        return self.results.add(settings, figures | spread(errors, "rms"))

    def _judge(self, sample: Sample) -> Judged:
        args = self.args
        return self.judge(sample, args.guidance, args.samples, args.batch, 0, self.bar.update)
