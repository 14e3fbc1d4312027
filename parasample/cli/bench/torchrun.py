"""Runs a benchmark's worker as ranks of their own, started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch


def launch(bench: str, ranks: int, task: dict[str, Any], device: str | None, *options: str) -> dict[str, Any]:
    """Run `parasample bench NAME --worker TASK` on `ranks` one-threaded processes; what rank 0 answered.

    The worker reads the task as JSON and saves its answer beside it, with the suffix ".answer".

    Raises:
        RuntimeError: with the end of their output, when a rank failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.json"
        path.write_text(json.dumps(task))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["-m", "parasample.cli", "bench", bench, "--worker", str(path), *options]
        command += ["--device", device] if device else []
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"a run on {ranks} ranks failed:\n{done.stderr[-2000:]}")
        return torch.load(path.with_suffix(".answer"), weights_only=True)
