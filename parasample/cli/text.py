"""What the commands share: tables, JSON, progress bars, and facts about this machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

PACKAGES = ("torch", "diffusers", "transformers", "triton", "numpy", "parasample")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A text table; the first `left` columns are aligned left, the others right."""
    lines = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]

    def format_line(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([format_line(lines[0]), rule, *map(format_line, lines[1:])])


def say(text: str = "", wrap: bool = False) -> None:
    """Print a line of a command's result; wrapped to the width of a page if asked."""
    print(textwrap.fill(text, 100) if wrap else text)


def say_json(payload: dict[str, Any]) -> None:
    """Print the command's whole result as one JSON object."""
    print(json.dumps(payload, indent=2, default=str))


def progress(total: int, description: str, unit: str = "step") -> tqdm:
    """A progress bar on stderr."""
    return tqdm(total=total, desc=description, unit=unit, file=sys.stderr, dynamic_ncols=True, leave=False,
                mininterval=0.5)  # fmt: skip


def add_common(parser: argparse.ArgumentParser, model: bool = True) -> None:
    """Options that every measuring command has; `model`: whether it runs one."""
    if model:
        parser.add_argument(
            "--model", type=Path, help="folder of a diffusers pipeline (default: the shipped model)"
        )
    parser.add_argument("--device", help="torch device (default: cuda if there is one, else cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; "not installed" where one is missing."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def device_name(device: str) -> str:
    """The device in words, with the number of threads or GPUs that were used."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The source tree's commit, with "+" when files differ from it; None outside of a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        show = ["git", "-C", os.fspath(folder)]
        head = subprocess.run(
            [*show, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run([*show, "diff", "--quiet", "HEAD"], capture_output=True).returncode == 1
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty else "")
