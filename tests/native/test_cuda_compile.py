"""Every CUDA and Triton kernel compiles for every supported device, and keeps its values in registers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = (80, 90, 100, 120)
ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\d+)'")
REGISTERS = re.compile(r"Used (\d+) registers")
SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc: CUDA kernels were not compiled")
@pytest.mark.parametrize("source", sorted((ROOT / "csrc").rglob("*.cu")), ids=lambda path: path.stem)
def test_cuda_kernels_do_not_spill(
    source: Path, tmp_path: Path, record_property: Callable[[str, object], None]
):
    targets = [f"-gencode=arch=compute_{cc},code=sm_{cc}" for cc in CAPABILITIES]
    command = [
        "nvcc",
        "-std=c++17",
        "-O3",
        "-DNDEBUG",
        "--threads",
        "2",
        "-fatbin",
        *targets,
        "-Xptxas",
        "-v",
    ]
    command += [f"-I{ROOT / 'csrc'}", str(source), "-o", str(tmp_path / "kernels.fatbin")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    kernels = ENTRY.findall(done.stderr)
    spills = SPILL.findall(done.stderr)
    assert {int(capability) for _, capability in kernels} == set(CAPABILITIES)
    assert len(spills) == len(kernels) > 0
    spilling = [name for name, bytes_ in zip(kernels, spills, strict=True) if bytes_ != ("0", "0")]
    registers = [int(count) for count in REGISTERS.findall(done.stderr)]
    for capability in CAPABILITIES:
        used = [n for (_, cc), n in zip(kernels, registers, strict=True) if int(cc) == capability]
        record_property(
            "registers", f"sm_{capability} {source.stem}: {len(used)} kernels, {min(used)} to {max(used)}"
        )
    record_property("registers", f"{source.stem}: {len(spilling)} of {len(kernels)} kernels spill")
    assert not spilling, f"{spilling} spill registers; shorten what is live, or load fewer rows ahead"


def test_triton_kernels_compile_and_do_not_spill(record_property: Callable[[str, object], None]):
    pytest.importorskip("triton", reason="triton is not installed: its kernels were not compiled")
    script = Path(__file__).with_name("compile_triton.py")
    command = [sys.executable, str(script), *map(str, CAPABILITIES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    compiled = json.loads(done.stdout.splitlines()[-1])
    assert len(compiled) == (5 + 6) * len(CAPABILITIES)
    for name, size, usage in compiled:
        assert size > 0
        used = re.findall(r"REG:(\d+)", usage)
        record_property("registers", f"triton {name}: {', '.join(used) or 'no cuobjdump to tell'}")
        stack = re.findall(r"STACK:(\d+)", usage)
        assert not any(map(int, stack)), f"{name} keeps values in memory: {usage}"
