"""The command line: `parasample demo | plan | bench | doctor`. One file per command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

DESCRIPTION = "Sample diffusion models in parallel over time: same result, fewer sequential rounds."
EPILOG = "Start with `parasample demo`; `parasample COMMAND --help` has an example for each command."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a hub
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # transformers warns at import about image processors that no pipeline here has.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from parasample.cli import bench, demo, doctor, plan
    from parasample.errors import ParasampleError

    parser = argparse.ArgumentParser(prog="parasample", description=DESCRIPTION, epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (demo, plan, bench, doctor):
        command.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except ParasampleError as error:
        print(f"parasample {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"parasample {args.command}: interrupted", file=sys.stderr)
        return 130
