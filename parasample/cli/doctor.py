"""`parasample doctor`: what this machine has, which kernels and transports work, and why others do not."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from typing import Any

import torch

from parasample import kernels
from parasample.cli.text import device_name, say, say_json, table, versions
from parasample.runtime.transports.status import transport_statuses

EXAMPLE = "example:\n  parasample doctor --json | python -m json.tool"
COMPILERS = {"nvcc": ("nvcc",), "c++": ("c++", "g++", "clang++"), "cmake": ("cmake",), "ninja": ("ninja",)}


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor", help="show what works on this machine and why the rest does not", description=__doc__,
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect the facts and show them."""
    report = {
        "versions": versions(),
        "devices": _devices(),
        "compilers": {name: _compiler(names) for name, names in COMPILERS.items()},
        "kernels": [vars(face) | {} for face in kernels.faces()],
        "transports": [vars(status) | {} for status in transport_statuses()],
    }
    if args.json:
        say_json(report)
    else:
        _show(report)
    return 0


def _show(report: dict[str, Any]) -> None:
    say(table(("version", ""), [list(item) for item in report["versions"].items()], left=2))
    say()
    say(table(("device", ""), [[d["device"], d["name"]] for d in report["devices"]], left=2))
    say()
    say(
        table(
            ("compiler", ""),
            [[name, text or "not found"] for name, text in report["compilers"].items()],
            left=2,
        )
    )
    say()
    rows = [[f["op"], f["face"], _works(f), f["reason"]] for f in report["kernels"]]
    say(table(("kernel", "face", "works", "because"), rows, left=4))
    say()
    rows = [[t["transport"], _works(t), t["reason"]] for t in report["transports"]]
    say(table(("transport", "works", "because"), rows, left=3))


def _works(entry: dict[str, Any]) -> str:
    return "yes" if entry["available"] else "no"


def _devices() -> list[dict[str, Any]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices: list[dict[str, Any]] = [{"device": "cpu", "name": device_name("cpu"), "cores": cores}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gigabytes, capability = properties.total_memory / 2**30, f"sm_{properties.major}{properties.minor}"
        name = f"{properties.name}, {gigabytes:.0f} GiB, {capability}"
        devices.append({"device": f"cuda:{index}", "name": name, "memory_bytes": properties.total_memory})
    return devices


def _compiler(names: tuple[str, ...]) -> str | None:
    path = next((found for found in map(shutil.which, names) if found), None)
    if path is None:
        return None
    try:
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} does not run: {error}"
    lines = [line for line in shown.splitlines() if line.strip()]
    line = next((line for line in lines if "release" in line), lines[0] if lines else path)
    return line.strip()
