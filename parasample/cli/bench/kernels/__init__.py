"""How fast is each fused kernel, beside eager torch, torch.compile and what the published method launches?

No contender is timed before its result has been compared with the float64 reference. All of them alternate
in one process with copies of a large buffer. Times are the 50th percentile with the 20th and 80th of at least
20 calls. Rates, shares and speedups are of the 20th: GB/s counts the bytes that any implementation must move,
shares are of the copies' bandwidth (in the file of those beside the case, as shown of the run's best). Hot
rows are streams of calls by the wall-clock, launches included.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch

from parasample.bridge.load import default_device
from parasample.cli.bench.kernels.clock import Clock, fast, gb_per_s
from parasample.cli.bench.kernels.registry import Case, Contender, Goal, Op, find_ops
from parasample.cli.bench.results import Results, spread
from parasample.cli.text import progress, say, say_json, table

EXAMPLE = "kernels --threads 2"
NEEDS_MODEL = False
PASSED = "passed"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--ops", nargs="+", choices=[op.name for op in find_ops()], help="(default: all)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")


def run(args: argparse.Namespace) -> int:
    """Measure every case that is not in the file yet; then show the rows, judge the goals and draw."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device or default_device())
    chosen = [op for op in find_ops() if args.ops is None or op.name in args.ops]
    results, clock = Results("kernels", args), Clock(device)
    cases = [(op, case) for op in chosen for case in op.cases(device.type, args.quick)]
    ceilings = _ceilings(results, clock)
    with progress(len(cases), "kernels", "case") as bar:
        for op, case in cases:
            bar.set_description(f"{op.name} {case.label}")
            _measure(op, case, results, clock)
            bar.update()
    rows = [row for row in results.rows if row["op"] != "ceilings"]
    ceilings = _compare_with_best_copy(rows, ceilings)
    goals = [_judge(op, goal, rows) for op in chosen for goal in op.goals if _applies(goal, device)]
    plots = [path for op in chosen for path in _draw(op, rows, ceilings, results)]
    if args.json:
        found = {"rows": rows, "ceilings": ceilings, "goals": goals, "method": clock.method}
        say_json(found | {"file": str(results.path), "plots": plots})
    else:
        _show(rows, ceilings, goals, clock.method)
        say(f"{rows[0]['device']}; rows in {results.path}; plots: {', '.join(plots)}")
    return 0


def _ceilings(results: Results, clock: Clock) -> dict[str, Any]:
    settings = {"bench": "kernels", "op": "ceilings"}
    return results.find(settings) or results.add(settings, clock.ceilings())


def _measure(op: Op, case: Case, results: Results, clock: Clock) -> None:
    """A row for every contender of a case, all measured together unless the file has them all."""
    torch.compiler.reset()  # what was compiled for other shapes would count against dynamo's limit
    contenders = op.contenders(case, clock.device)
    settings = {"bench": "kernels", "op": op.name, "case": case.label, "hot": case.hot} | case.settings
    if results.find_all([settings | {"contender": contender.name} for contender in contenders]):
        return
    arguments = op.arguments(case, clock.device)
    gates = check(op, case, contenders, arguments)
    passed = {contender.name: contender for contender in contenders if gates[contender.name] == PASSED}
    moved = op.bytes_moved(case)
    times = clock.hot(passed, arguments) if case.hot else clock.cold(passed, arguments, moved)
    best = _fastest_baselines(passed, times)
    # Hot rows have no copies beside them: caches are not to be compared with memory.
    copies = clock.copy_gb_per_s(times["copy"]) if "copy" in times else None
    placed = {"kind": case.kind, "size": case.size, "sweep": case.in_sweep}
    for contender in contenders:
        figures: dict[str, Any] = {"gate": gates[contender.name], "bytes": moved, "flops": op.flops(case)}
        if contender.name in passed:
            found = times[contender.name]
            rate = gb_per_s(moved, fast(found))
            figures |= spread(found, "us") | {"calls": len(found), "gb_per_s": rate}
            figures |= {"copy_gb_per_s": copies, "share": rate / copies if copies else None}
            figures["speedups"] = {name: us / fast(found) for name, us in best.items()}
        results.add(settings | {"contender": contender.name}, placed | figures)


def check(op: Op, case: Case, contenders: Sequence[Contender], arguments: Any) -> dict[str, str]:
    """By contender: PASSED, or what is wrong with its result; arguments are left as they were."""
    expected, tolerances = op.expected(arguments), op.tolerances(case)
    gates = {}
    for contender in contenders:
        own = copy.deepcopy(arguments)
        try:
            found = op.found(own, contender.build(own)())
        except Exception as error:  # whatever one raises, the others are measured
            gates[contender.name] = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        errors = {name: _error(found[name], expected[name]) for name in expected}
        wrong = [
            f"{name} off by {error:.1e}, allowed {tolerances[name]:.0e}"
            for name, error in errors.items()
            if not error <= tolerances[name]  # NaN is wrong, too
        ]
        gates[contender.name] = f"failed: {'; '.join(wrong)}" if wrong else PASSED
    return gates


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return float("nan")
    distance = (found.double() - expected).square().mean(-1) / expected.square().mean(-1)
    return float(distance.max().sqrt())


def _fastest_baselines(passed: dict[str, Contender], times: dict[str, list[float]]) -> dict[str, float]:
    best: dict[str, float] = {}
    for name, contender in passed.items():
        if contender.baseline is not None:
            best[contender.baseline] = min(fast(times[name]), best.get(contender.baseline, float("inf")))
    return best


def _compare_with_best_copy(rows: list[dict[str, Any]], ceilings: dict[str, Any]) -> dict[str, Any]:
    """Take shares of the run's best copies: where other work slowed a case's own, its share says too much."""
    timed = [row for row in rows if row.get("copy_gb_per_s")]
    best = max([ceilings["copy_gb_per_s"], *(row["copy_gb_per_s"] for row in timed)])
    for row in timed:
        row["share"] = row["gb_per_s"] / best
    return ceilings | {"copy_gb_per_s": best}


def _applies(goal: Goal, device: torch.device) -> bool:
    threads = goal.threads in (None, torch.get_num_threads()) or device.type != "cpu"
    return goal.device == device.type and threads


def _judge(op: Op, goal: Goal, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A goal with the figure of the op's first contender and whether it is met; None where not measured."""
    row = next((row for row in rows if row["op"] == op.name and row["case"] == goal.case), {})
    value = (
        row.get(goal.figure) if goal.figure in ("us", "share") else row.get("speedups", {}).get(goal.figure)
    )
    bound = "at most" if goal.figure == "us" else "at least"
    judged = {"op": op.name, "case": goal.case, "goal": f"{bound} {goal.text(goal.target)}", "value": value}
    if value is None:
        return judged | {"met": None, "text": "not measured"}
    met = goal.met(value)
    return judged | {"met": met, "text": f"{'met' if met else 'MISSED'}: {goal.text(value)}"}


def _show(
    rows: list[dict[str, Any]], ceilings: dict[str, Any], goals: list[dict[str, Any]], method: str
) -> None:
    baselines = list(dict.fromkeys(name for row in rows for name in row.get("speedups", {})))
    headers = ["op", "case", "contender", "us p20/p50/p80", "GB/s", "of copy", *(f"x {b}" for b in baselines)]
    say(table(headers, [_line(row, baselines) for row in rows], left=3))
    copies, peak = f"{ceilings['copy_gb_per_s']:.1f} GB/s", f"{ceilings['gflop_per_s']:.0f} GFLOP/s"
    say(f"\nCopy {copies}, fused multiply-adds {peak}.\nCold rows: {method}.\n")
    if goals:
        cells = [[goal[key] for key in ("op", "case", "goal", "text")] for goal in goals]
        say(table(["op", "case", "goal", ""], cells, left=4) + "\n")


def _line(row: dict[str, Any], baselines: list[str]) -> list[str]:
    names = [row["op"], row["case"], row["contender"]]
    if row["gate"] != PASSED:
        return [*names, f"not timed: {row['gate']}", *["-"] * (2 + len(baselines))]
    times = "/".join(f"{row[key]:.{0 if row['us'] >= 100 else 1}f}" for key in ("us_p20", "us", "us_p80"))
    share = "-" if row["share"] is None else f"{row['share']:.0%}"
    speedups = [f"{row['speedups'][name]:.2f}" if name in row["speedups"] else "-" for name in baselines]
    return [*names, times, f"{row['gb_per_s']:.1f}", share, *speedups]


def _draw(op: Op, rows: list[dict[str, Any]], ceilings: dict[str, Any], results: Results) -> list[str]:
    from parasample.cli.bench.kernels.plots import bandwidth_figure, roofline_figure

    timed = [row for row in rows if row["op"] == op.name and row["gate"] == PASSED and not row["hot"]]
    figures = {"roofline": roofline_figure, "bandwidth": bandwidth_figure}
    paths = []
    for name, figure in figures.items():
        path = results.path.with_name(f"{results.path.stem}_{op.name}_{name}.png")
        figure(op, timed, ceilings, path)
        paths.append(str(path))
    return paths
