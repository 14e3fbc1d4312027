"""Compiles the Triton kernels for the compute capabilities given, without a GPU; prints JSON rows.

Each row: [variant, bytes of machine code, what cuobjdump says of its resources ("" without cuobjdump)].
Run by test_cuda_compile.py in a process of its own: other tests may have imported Triton as an interpreter.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from parasample.kernels.drift_aggregate.triton import BLOCK as DRIFT_BLOCK
from parasample.kernels.drift_aggregate.triton import drift_convert_kernel, drift_moments_kernel
from parasample.kernels.picard_update.triton import BLOCK, picard_update_kernel

VARIANTS = [  # accumulated in, stored as, K, with noise, R
    (tl.float32, "fp32", 1, True, 0),
    (tl.float32, "fp32", 2, True, 8),
    (tl.float32, "bf16", 2, False, 3),
    (tl.float32, "fp16", 5, True, 8),
    (tl.float64, "fp64", 2, True, 2),
]
DRIFT_VARIANTS = [  # accumulated in, stored as
    (tl.float32, "bf16"),
    (tl.float32, "fp32"),
    (tl.float64, "fp64"),
]
DRIFT_FLAGS = {"GUIDED": True, "RESCALED": True, "CONVERTED": True, "CHUNKS": 64}
ROWS = (
    "conditional_ptr", "unconditional_ptr", "states_ptr", "anchors_ptr", "outputs_ptr", "noise_ptr",
    "directions_ptr",
)  # fmt: skip


def argument_type(name: str, stored: str, real: str) -> str:
    if name in ("begin_ptr", "hold_ptr", "end_ptr"):
        return "*i64"
    if name.endswith("_ptr"):
        return f"*{stored}" if name in ROWS else f"*{real}"
    return "i32" if name.startswith("num_") else "i64"


def resources(cubin: bytes) -> str:
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    if tool is None:
        return ""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True).stdout


def compiled(
    kernel: triton.JITFunction, real: tl.dtype, stored: str, constants: dict[str, object], capability: int
) -> tuple[int, str]:
    """Bytes of machine code and resources of one kernel."""
    constants = {"REAL": real, **constants}
    names = kernel.arg_names
    kind = "fp64" if real is tl.float64 else "fp32"
    signature = {n: "constexpr" if n in constants else argument_type(n, stored, kind) for n in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, values)
    cubin = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
    return len(cubin), resources(cubin)


def main() -> None:
    rows = []
    for capability in map(int, sys.argv[1:]):
        for real, stored, K, has_noise, rank in VARIANTS:
            constants = {"K": K, "HAS_NOISE": has_noise, "RANK": rank, "BLOCK": BLOCK}
            found = compiled(picard_update_kernel, real, stored, constants, capability)
            rows.append([f"cc{capability}-{stored}-K{K}-R{rank}", *found])
        for real, stored in DRIFT_VARIANTS:
            for kernel, flags in ((drift_moments_kernel, {}), (drift_convert_kernel, DRIFT_FLAGS)):
                found = compiled(kernel, real, stored, {**flags, "BLOCK": DRIFT_BLOCK}, capability)
                rows.append([f"cc{capability}-{stored}-{kernel.__name__}", *found])
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
