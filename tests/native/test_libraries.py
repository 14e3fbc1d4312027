"""What the compiled libraries ask of the machine that loads them; every variant computes alike."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parasample.kernels import native

ROOT = Path(__file__).resolve().parents[2]
# Libraries that torch itself has loaded by then, and the system's own.
ALLOWED = (
    "libtorch_cpu.so",
    "libtorch_cuda.so",
    "libc10.so",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
    "libc.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "ld-linux",
)


def libraries() -> list[Path]:
    return sorted(native.FOLDER.glob("libparasample_*.so"))


def inspect(tool: str, *arguments: str) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed: the libraries were not audited")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def test_ops_library_is_built():
    assert native.FOLDER / "libparasample_ops.so" in libraries()
    assert native.ops_library().loaded


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc: the CUDA library was not built here")
def test_cuda_library_is_built():
    assert native.FOLDER / "libparasample_ops_cuda.so" in libraries()


@pytest.mark.parametrize("library", libraries(), ids=lambda path: path.stem)
class TestAbi:
    def test_only_stable_torch_symbols_are_undefined(self, library: Path):
        """C++ symbols of torch change between versions; only its C functions are stable."""
        undefined = [line.split()[-1] for line in inspect("nm", "-D", "-u", str(library)).splitlines()]
        assert not [
            name for name in undefined if name.startswith(("_ZN3c10", "_ZNK3c10", "_ZN2at", "_ZN5torch"))
        ]
        assert any(name.startswith(("aoti_torch_", "torch_")) for name in undefined)

    def test_needs_only_what_is_already_loaded(self, library: Path):
        dynamic = inspect("readelf", "-d", str(library))
        needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
        assert needed and not [name for name in needed if not name.startswith(ALLOWED)]
        assert "RPATH" not in dynamic and "RUNPATH" not in dynamic

    def test_names_no_folder_of_the_build_machine(self, library: Path):
        assert str(ROOT).encode() not in library.read_bytes()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one variant on this processor")
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets_match_reference(isa: str):
    """The variant that this machine prefers runs in every other test; here are those for older processors."""
    if isa == "avx2" and " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no avx2: that variant did not run")
    check = (
        "from parasample.kernels import native\n"
        f"assert '{isa}' in native.ops_library().reason, native.ops_library().reason\n"
        "import sys, pytest\n"
        "ops = ('picard_update', 'dense_update', 'drift_aggregate', 'gather_inputs')\n"
        "tests = [f'tests/kernels/test_{op}.py' for op in ops]\n"
        "sys.exit(pytest.main([*tests, '-q', '-n0', '-p', 'no:cacheprovider',"
        " '-k', 'cpu and (test_matches_reference or overflow) and not W1000']))"
    )
    environment = {**os.environ, "PARASAMPLE_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", check], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
