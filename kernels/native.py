"""Loads the compiled libraries that lie beside this file and says what came of it."""

from __future__ import annotations

import ctypes
import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent / "_native"


@dataclass(frozen=True)
class Library:
    """A native library: whether it is loaded, and the reason in words either way."""

    loaded: bool
    reason: str


@functools.cache
def ops_library() -> Library:
    """The op schemas and CPU kernels. Warns once where they are missing: the reference runs then."""
    library = _load("libparasample_ops.so")
    if not library.loaded:
        warnings.warn(
            f"parasample runs its slow reference kernels: {library.reason}. "
            "Reinstall with a C++ compiler and --no-build-isolation.",
            RuntimeWarning,
            stacklevel=3,
        )
        return library
    isa = ctypes.CDLL(str(FOLDER / "libparasample_ops.so")).parasample_cpu_isa
    isa.restype = ctypes.c_char_p
    return Library(True, f"{isa().decode()} instructions")


@functools.cache
def cuda_library() -> Library:
    """The CUDA kernels; never touched under a torch without CUDA, whose symbols they need."""
    if not ops_library().loaded:
        return Library(False, "needs libparasample_ops.so, which is not loaded")
    if torch.version.cuda is None:
        return Library(False, f"torch {torch.__version__} is built without CUDA")
    return _load("libparasample_ops_cuda.so")


def _load(name: str) -> Library:
    path = FOLDER / name
    if not path.exists():
        return Library(False, f"{name} was not built at installation")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Library(False, f"{name} cannot be loaded under torch {torch.__version__}: {error}")
    return Library(True, "loaded")
