"""Rows of a benchmark: one JSON object per line, with the settings, the figures and where they come from."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from parasample.bridge.load import default_device, load_pipeline
from parasample.cli.text import add_common, commit, device_name, say, say_json, table, versions
from parasample.models import CLASS_PROMPTS, demo_model_path


def add_bench_options(parser: argparse.ArgumentParser, model: bool = True) -> None:
    """Options that every benchmark has; `model`: whether it runs one."""
    parser.add_argument(
        "--quick", action="store_true", help="few seeds and short cases: does it run, roughly what"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="measure again what the file of rows has already"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks/results"),
        help="folder of rows (default: %(default)s)",
    )
    add_common(parser, model)


def open_pipeline(args: argparse.Namespace) -> Any:
    """The pipeline to measure, on its device."""
    return load_pipeline(args.model or demo_model_path(), args.device or default_device())


class Results:
    """A file of rows that is added to as they are measured, so that an interrupted run can be resumed.

    A row whose settings are in the file already (same model, device and settings) is not measured again.
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.path = args.output / f"{name}{'_quick' if args.quick else ''}.jsonl"
        self.rows: list[dict[str, Any]] = []  # of this run, in order
        device = args.device or default_device()
        self._where = {"device": device_name(device)}
        if hasattr(args, "model"):  # a benchmark of kernels has none
            self._where["model"] = args.model.name if args.model else "fashion_sd"
        self._known = [] if args.fresh or not self.path.exists() else list(_read(self.path))

    def find(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The row measured earlier with these settings; it counts as this run's row."""
        return self.rows[-1] if self.find_all([settings]) else None

    def find_all(self, settings: Sequence[dict[str, Any]]) -> bool:
        """Whether all of these were measured earlier; only then they count as this run's rows."""
        found = [row for row in map(self._known_row, settings) if row is not None]
        if len(found) < len(settings):
            return False
        self.rows += found
        return True

    def _known_row(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        wanted = (settings | self._where).items()
        rows = (row for row in reversed(self._known) if all(row.get(k) == value for k, value in wanted))
        return next(rows, None)

    def add(self, settings: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
        """Write a measured row."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = settings | figures | self._where | {"versions": versions(), "commit": commit(), "time": now}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        return row

    def show(self, columns: dict[str, str], as_json: bool, left: int = 2) -> None:
        """Show this run's rows: `columns` maps a heading to a format of a row, such as "{rounds:.0f}"."""
        if as_json:
            say_json({"rows": self.rows, "file": str(self.path)})
            return
        lines = [[text.format(**row) for text in columns.values()] for row in self.rows]
        say(table(list(columns), lines, left=left))
        say(f"\n{self._where['device']}; rows in {self.path}")


def _read(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # a line cut short by an interruption
            continue
    return rows


def spread(values: Sequence[float], name: str) -> dict[str, float]:
    """Median under `name`, with its 20th and 80th percentile."""
    if len(values) == 1:
        return {name: values[0], f"{name}_p20": values[0], f"{name}_p80": values[0]}
    tensor = torch.tensor(list(values), dtype=torch.float64)
    p20, p80 = (float(torch.quantile(tensor, q)) for q in (0.2, 0.8))
    return {name: statistics.median(values), f"{name}_p20": p20, f"{name}_p80": p80}


def prompts_for(seeds: Sequence[int]) -> list[str]:
    """A class prompt for each seed, in turn."""
    return [CLASS_PROMPTS[seed % len(CLASS_PROMPTS)] for seed in seeds]


# Rows of one model call: enough to fill any device, few enough for a small machine's memory.
MOST_ROWS = 4096


def chunks(seeds: Sequence[int], states: int, guidance: float) -> list[list[int]]:
    """Seeds in batches whose rounds of `states` states per sample fit into one model call."""
    copies = 2 if guidance > 1 else 1
    size = max(MOST_ROWS // (states * copies), 1)
    return [list(seeds[i : i + size]) for i in range(0, len(seeds), size)]
