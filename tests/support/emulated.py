"""Builds a CUDA source for the host with the emulator in tests/kernels/emulated_cuda."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
LAUNCH = re.compile(r"([\w:<>, ]+?)<<<(\w+), ([\w.]+), ([\w.]+), stream>>>\((.*?)\);")


class Rows(ctypes.Structure):
    """struct Rows of common/rows.h, field by field."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("stride_row", ctypes.c_int64),
        ("stride_sample", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    ]


# The arguments of picard_update by how kernels take them.
TABLES = ("state_coef", "anchor_coef", "output_coef", "noise_coef", "x0_coef", "residual_scale", "weights")
ROWS = ("states", "anchors", "outputs", "noise", "directions")


class PicardUpdate(ctypes.Structure):
    """struct PicardUpdate of picard_update.h, field by field; also what dense_update takes."""

    _fields_ = [
        *[(name, Rows) for name in ROWS],
        ("stride_direction", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in (*TABLES, "begin", "hold", "end", "residual")],
        *[(name, ctypes.c_int64) for name in ("num_steps", "num_samples", "num_elements")],
        *[(name, ctypes.c_int32) for name in ("history", "rank")],
    ]


def rows(tensor: torch.Tensor | None) -> Rows:
    if tensor is None:
        return Rows(None, 0, 0, 0)
    stride_sample = tensor.stride(1) if tensor.dim() > 2 else 0
    return Rows(tensor.data_ptr(), tensor.stride(0), stride_sample, DTYPES[tensor.dtype])


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def build(source: Path, entry: str, launches: int, folder: Path) -> ctypes.CDLL:
    """`source` with its launches replaced, and `entry` (extern "C" functions) at its end."""
    compiler = next((name for name in ("g++", "c++") if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("no C++ compiler: the CUDA kernels were not emulated")
    text, found = LAUNCH.subn(r"emulation::launch(\2, \3, \4, [=] { \1(\5); });", source.read_text())
    assert found == launches and "<<<" not in text
    (folder / "emulated.cpp").write_text(text + entry)
    includes = [f"-I{ROOT / 'tests' / 'kernels' / 'emulated_cuda'}", f"-I{ROOT / 'csrc'}"]
    flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", *includes]
    target = folder / "emulated.so"
    subprocess.run([compiler, *flags, str(folder / "emulated.cpp"), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))
