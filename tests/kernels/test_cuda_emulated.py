"""The CUDA kernels' logic without a GPU: the same source compiled for the host, blocks run by fibers.

It shows that the kernels compute the right thing; speed and the memory model need a device (the gpu tests).
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "csrc" / "picard_update" / "picard_update.cu"
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
LAUNCH = re.compile(r"([\w<>, ]+?)<<<(\w+), (\w+), 0, stream>>>\((.*?)\);")
ENTRY = """
using namespace parasample;
extern "C" int64_t partials(const PicardUpdate* call) { return cuda_num_partials(*call); }
extern "C" int update(const PicardUpdate* call, void* workspace) {
  return launch_picard_update_cuda(*call, workspace, nullptr);
}
"""


class Rows(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("stride_row", ctypes.c_int64),
        ("stride_sample", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    ]


TABLES = ("state_coef", "anchor_coef", "output_coef", "noise_coef", "x0_coef", "residual_scale")


class PicardUpdate(ctypes.Structure):
    """struct PicardUpdate of picard_update.h, field by field."""

    _fields_ = [
        *[(name, Rows) for name in ("states", "anchors", "outputs", "noise")],
        *[(name, ctypes.c_void_p) for name in (*TABLES, "begin", "hold", "end", "residual")],
        *[(name, ctypes.c_int64) for name in ("num_steps", "num_samples", "num_elements")],
        ("history", ctypes.c_int32),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = next((name for name in ("g++", "c++") if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("no C++ compiler: the CUDA kernels were not emulated")
    folder = tmp_path_factory.mktemp("emulated")
    text, launches = LAUNCH.subn(r"emulation::launch(\2, \3, [=] { \1(\4); });", SOURCE.read_text())
    assert launches == 6 and "<<<" not in text
    (folder / "emulated.cpp").write_text(text + ENTRY)
    includes = [f"-I{Path(__file__).with_name('emulated_cuda')}", f"-I{ROOT / 'csrc'}"]
    flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", *includes]
    subprocess.run(
        [compiler, *flags, str(folder / "emulated.cpp"), "-o", str(folder / "emulated.so")], check=True
    )
    loaded = ctypes.CDLL(str(folder / "emulated.so"))
    loaded.partials.restype = ctypes.c_int64
    return loaded


def emulate(library, call):
    def rows(tensor):
        if tensor is None:
            return Rows(None, 0, 0, 0)
        return Rows(tensor.data_ptr(), tensor.stride(0), tensor.stride(1), DTYPES[tensor.dtype])

    T, B, D = call.outputs.shape
    residual = torch.full((T + 1, B), torch.nan, dtype=call.residual_scale.dtype)
    description = PicardUpdate(
        *(rows(getattr(call, name)) for name in ("states", "anchors", "outputs", "noise")),
        *(getattr(call, name).data_ptr() for name in (*TABLES, "begin", "hold", "end")),
        residual.data_ptr(),
        *(T, B, D, call.state_coef.shape[1]),
    )
    size = (T + 1, B, library.partials(ctypes.byref(description)))
    workspace = torch.full(size, torch.nan, dtype=residual.dtype)
    assert library.update(ctypes.byref(description), ctypes.c_void_p(workspace.data_ptr())) == 0
    return call.states, residual


@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_match_reference(library, random_call, assert_same, reference, dtype, K, alias):
    for seed, (W, B, D) in enumerate([(1, 1, 1), (7, 4, 130), (13, 2, 33)]):
        for outputs_dtype, noise in ((None, True), (torch.bfloat16, False)):
            call = random_call(W, B, D, K, dtype, outputs_dtype, noise, alias, seed=seed)
            assert_same(emulate(library, call.clone()), reference(call))


def test_ranges_are_clipped_to_the_trajectory(library, random_call):
    """Values on a device cannot be checked: bad ones must not read or write outside the tensors."""
    call = random_call(W=5, B=3, D=40)
    call.begin, call.hold, call.end = (
        torch.tensor([-3, 4, 9]),
        torch.tensor([-9, 99, 0]),
        torch.tensor([4, 50, 12]),
    )
    before = call.clone()
    states, residual = emulate(library, call)
    assert torch.equal(states[:, 2], before.states[:, 2]) and residual[:, 2].isposinf().all()
    assert residual[1:5, 0].isfinite().all() and residual[5, 1].isfinite()
