"""How many rounds each update needs, beside the published algorithm in the same run.

Medians over seeds, each with its own class prompt; rounds are those of each sample by itself, although many
are solved together. RMS is of the final latents against sequential sampling, in units of their standard
deviation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

import parasample as ps
from parasample.bridge.load import SAMPLERS
from parasample.cli.bench.results import Results, chunks, open_pipeline, prompts_for, spread
from parasample.cli.sampling import Case, relative_rms, sample_parallel, sample_rounds, sample_sequential
from parasample.cli.text import progress

EXAMPLE = "rounds --seeds 32 --cases ddim-100 dpm++-50"
# The tolerance of the paper's own rule (arXiv 2305.16317, section 4).
PUBLISHED_TOLERANCE = 0.1
# The paper's algorithm with its own rule, then our updates.
METHODS = {
    "published": ps.Picard(update="published", stopping="published"),
    "v": ps.Picard(update="v"),
    "gaussian": ps.Picard(update="gaussian"),
    "anderson": ps.Picard(update="anderson"),
    "secant": ps.Picard(update="secant"),
}
CASES: dict[str, tuple[str, int, int | Literal["full"]]] = {
    "ddim-100": ("ddim", 100, "full"),
    "ddpm-100": ("ddpm", 100, "full"),
    "dpm++-50": ("dpm++", 50, 16),
    "ddpm-1000-64": ("ddpm", 1000, 64),
    "ddim-1000": ("ddim", 1000, "full"),
    "ddpm-1000": ("ddpm", 1000, "full"),
}
QUICK_CASES = ("ddim-100", "ddpm-100", "dpm++-50")
COLUMNS = {
    "sampler": "{title} {steps}", "update": "{update}", "tolerance": "{tolerance:g}",
    "window": "{window}", "guidance": "{guidance:g}",
    "rounds": "{rounds:g}", "p20-p80": "{rounds_p20:.0f}-{rounds_p80:.0f}",
    "evaluations": "{evaluations:.0f}",
    "RMS": "{rms:.1e}", "RMS p80": "{rms_p80:.1e}",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--seeds", type=int, default=32, help="samples per row (default: %(default)s)")
    parser.add_argument(
        "--tolerance", nargs="+", type=float, default=[ps.Picard().tolerance],
        help="of our updates (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--published-tolerance", nargs="+", type=float, default=[PUBLISHED_TOLERANCE],
        help="of the published rule; several show its rounds at equal error (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="(default: all)")
    parser.add_argument("--updates", nargs="+", choices=list(METHODS), help="(default: all)")
    parser.add_argument(
        "--guidance", nargs="+", type=float, default=[1.0, 5.0], help="(default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure every row that is not in the file yet, and show them all."""
    seeds = range(4 if args.quick else args.seeds)
    names = args.cases or (QUICK_CASES if args.quick else list(CASES))
    updates = args.updates or (["published", "secant"] if args.quick else list(METHODS))
    results, pipe = Results("rounds", args), open_pipeline(args)
    methods = [
        (update, replace(METHODS[update], tolerance=tolerance))
        for update in updates
        for tolerance in (args.published_tolerance if update == "published" else args.tolerance)
    ]
    with progress(len(names) * len(args.guidance) * len(methods), "rounds", "row") as bar:
        for name in names:
            sampler, steps, window = CASES[name]
            windowed = [(label, replace(method, window=window)) for label, method in methods]
            for guidance in args.guidance:
                measure_methods(pipe, results, "rounds", sampler, steps, guidance, windowed, seeds, bar)
    results.show(COLUMNS, args.json)
    return 0


def measure_methods(
    pipe: Any,
    results: Results,
    bench: str,
    sampler: str,
    steps: int,
    guidance: float,
    methods: Sequence[tuple[str, ps.Picard]],
    seeds: Sequence[int],
    bar: Any,
) -> None:
    """A row for each labelled method, all against one sequential run, made only if a row is missing."""
    expected: Tensor | None = None
    for label, method in methods:
        bar.set_description(f"{SAMPLERS[sampler][0]} {steps}, guidance {guidance:g}, {label}")
        settings = {
            "bench": bench, "sampler": sampler, "title": SAMPLERS[sampler][0], "steps": steps,
            "guidance": guidance, "label": label, "update": method.update, "stopping": method.stopping,
            "tolerance": method.tolerance, "window": method.window, "states_per_round":
            method.states_per_round, "seeds": len(seeds),
        }  # fmt: skip
        if results.find(settings) is None:
            case = Case(sampler, steps, method)
            if expected is None:
                expected = _sequential(pipe, case, guidance, seeds)
            results.add(settings, measure_method(pipe, case, guidance, seeds, expected))
        bar.update()


def _sequential(pipe: Any, case: Case, guidance: float, seeds: Sequence[int]) -> Tensor:
    parts = chunks(seeds, 16, guidance)
    return torch.cat([sample_sequential(pipe, case, prompts_for(p), guidance, p).latents for p in parts])


def measure_method(
    pipe: Any, case: Case, guidance: float, seeds: Sequence[int], expected: Tensor
) -> dict[str, Any]:
    """Rounds, evaluations and error of one method over the seeds."""
    rounds: list[float] = []
    evaluations, latents, began_at = 0, [], time.perf_counter()
    states = case.method.states_per_round or case.method.window
    states = case.steps if isinstance(states, str) else states
    for part in chunks(seeds, states, guidance):
        try:
            found = sample_parallel(pipe, case, prompts_for(part), guidance, part)
        except ps.DivergedError as error:  # a fact about the method, not a failure of the benchmark
            return {"diverged": str(error)} | _nothing()
        assert found.stats is not None
        rounds += sample_rounds(found.stats)
        evaluations += found.evaluations
        latents.append(found.latents)
    errors = relative_rms(torch.cat(latents), expected).tolist()
    figures = {"evaluations": evaluations / len(seeds), "seconds": time.perf_counter() - began_at}
    return spread(rounds, "rounds") | spread(errors, "rms") | figures


def _nothing() -> dict[str, float]:
    names = ("rounds", "rms")
    return {f"{name}{suffix}": float("nan") for name in names for suffix in ("", "_p20", "_p80")} | {
        "evaluations": float("nan")
    }
