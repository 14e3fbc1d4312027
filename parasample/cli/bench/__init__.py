"""`parasample bench`: one question per benchmark; rows of JSON with device, versions and commit."""

from __future__ import annotations

import argparse
from types import ModuleType
from typing import Any

from parasample.cli.bench import (
    depth,
    depth_ranks,
    exchange,
    fidelity,
    frontier,
    kernels,
    overhead,
    ranks,
    rounds,
)
from parasample.cli.bench.results import add_bench_options

BENCHES: tuple[ModuleType, ...] = (
    rounds,
    frontier,
    fidelity,
    overhead,
    ranks,
    depth,
    depth_ranks,
    exchange,
    kernels,
)
EXAMPLE = "example:\n  parasample bench rounds --quick\n  parasample bench fidelity --samples 2000"


def add_parser(commands: Any) -> None:
    """Add `bench` and its benchmarks to the command line."""
    parser = commands.add_parser(
        "bench", help="measure one thing and keep the rows", description=__doc__,
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    benches = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
    for module in BENCHES:
        name = module.__name__.rpartition(".")[2]
        text = str(module.__doc__)
        bench = benches.add_parser(
            name, help=text.partition("\n")[0].rstrip(".").lower(), description=text,
            epilog=f"example:\n  parasample bench {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        add_bench_options(bench, model=getattr(module, "NEEDS_MODEL", True))
        module.add_options(bench)
        bench.set_defaults(run=module.run)
