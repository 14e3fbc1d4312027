"""Runs the Triton tests of every op on the CPU, in a process of their own.

Whether Triton interprets is fixed when it is imported, so this cannot share a process with other tests.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("op", ["picard_update", "drift_aggregate"])
def test_triton_matches_reference_interpreted(op):
    tests = Path(__file__).with_name(f"test_{op}.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(tests),
        "-k",
        "triton and not large",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n0",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 20, done.stdout[-2000:]
