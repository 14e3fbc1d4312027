"""Builds the native code with CMake and Ninja: libraries of ops for parasample/kernels/_native, and the
module parasample.runtime.transports._host.

Environment: PARASAMPLE_NATIVE=0 leaves native code out, =1 makes a failure to build it fatal;
PARASAMPLE_CUDA=0/1 overrides the search for nvcc. Without a C++ compiler or without torch the package is
installed as pure Python, without Python's headers with ops only, and says so: everything works then, more
slowly.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# pip runs this file with the environment's python but not its PATH: find that environment's cmake and ninja.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def torch_folder() -> Path | None:
    """Folder of the installed torch package, found without importing it (an import takes seconds)."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def torch_has_cuda(torch: Path) -> bool:
    return re.search(r"^cuda: .* = '", (torch / "version.py").read_text(), re.MULTILINE) is not None


def missing_tools() -> list[str]:
    """What native code needs and this environment lacks, in words."""
    compiler = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    checks = {
        "a C++ compiler (install g++ or set CXX)": any(shutil.which(name) for name in compiler),
        "torch (install it first and pass --no-build-isolation)": torch_folder() is not None,
        "cmake (pip install cmake)": shutil.which("cmake"),
        "ninja (pip install ninja)": shutil.which("ninja"),
        "Linux": sys.platform == "linux",
    }
    return [what for what, found in checks.items() if not found]


def native_wanted() -> bool:
    choice = os.environ.get("PARASAMPLE_NATIVE", "auto")
    if choice == "0":
        return False
    missing = missing_tools()
    if missing and choice == "1":
        raise SystemExit(f"parasample: PARASAMPLE_NATIVE=1 but this environment lacks {'; '.join(missing)}")
    if missing:
        print(
            f"parasample: installing without native code, which needs {'; '.join(missing)}. "
            "Reference kernels will run instead, more slowly.",
            file=sys.stderr,
        )
    return not missing


def cuda_wanted() -> bool:
    choice = os.environ.get("PARASAMPLE_CUDA", "auto")
    return shutil.which("nvcc") is not None if choice == "auto" else choice == "1"


def host_includes(torch: Path) -> list[str]:
    """Folders of the headers that the module _host needs; none, said aloud, where one is missing."""
    python = Path(sysconfig.get_path("include"))
    package = importlib.util.find_spec("pybind11")
    copies = [Path(package.origin).parent / "include"] if package and package.origin else []
    copies.append(torch / "include")  # torch brings a copy, for extensions
    pybind11 = next((folder for folder in copies if (folder / "pybind11" / "pybind11.h").exists()), None)
    if pybind11 is not None and (python / "Python.h").exists():
        return [str(python), str(pybind11)]
    lacks = "pybind11 (pip install pybind11)" if pybind11 is None else "Python.h (install python3-dev)"
    print(
        f"parasample: building without the module _host, which needs {lacks}. "
        "Ranks on one host will talk over Gloo instead of shared memory, more slowly.",
        file=sys.stderr,
    )
    return []


def install(built: list[Path], target: Path) -> None:
    """Make `built` the only .so files of `target`, each replaced in one move: a process that has the old one
    loaded keeps it whole."""
    target.mkdir(parents=True, exist_ok=True)
    for library in built:
        shutil.copy2(library, target / f"{library.name}.new")
        os.replace(target / f"{library.name}.new", target / library.name)
    for stale in target.glob("*.so"):
        if stale.name not in {library.name for library in built}:
            stale.unlink()


class CMakeBuild(build_ext):
    """One Extension stands for all native code; CMake knows the rest. Rebuilds are incremental."""

    def run(self) -> None:
        torch = torch_folder()
        assert torch is not None  # native_wanted() has looked
        cuda, includes, suffix = cuda_wanted(), host_includes(torch), sysconfig.get_config_var("EXT_SUFFIX")
        tag = f"{'cuda' if cuda else 'cpu'}-{platform.machine()}"
        folder = ROOT / "build" / tag
        options = {
            "TORCH_DIR": torch,
            "PARASAMPLE_CUDA": "ON" if cuda else "OFF",
            "PARASAMPLE_CUDA_STUB": "OFF" if torch_has_cuda(torch) else "ON",
            "PARASAMPLE_HOST_INCLUDES": ";".join(includes),
            "PARASAMPLE_HOST_SUFFIX": suffix,
        }
        defines = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run(["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *defines], check=True)
        subprocess.run(["cmake", "--build", folder], check=True)
        # The build folder may hold more from an earlier build, with CUDA or for another Python.
        ops = ["libparasample_ops.so", *["libparasample_ops_cuda.so"] * cuda]
        host = [f"_host{suffix}"] if includes else []
        kernels, transports = self.targets(installed=not (self.editable_mode or self.inplace))
        install([folder / "lib" / name for name in ops], kernels)
        install([folder / "lib" / name for name in host], transports)

    def targets(self, installed: bool) -> tuple[Path, Path]:
        """Where ops libraries and Python modules go: into the package that is built, or among the sources."""
        package = Path(self.build_lib, "parasample") if installed else ROOT / "parasample"
        kernels = package / "kernels" if installed else ROOT / "kernels"
        return kernels / "_native", package / "runtime" / "transports"

    def get_outputs(self) -> list[str]:
        return [str(path) for target in self.targets(installed=True) for path in target.glob("*.so")]


def packages() -> list[str]:
    """Every folder of Python files; kernels/ at the root is parasample.kernels."""
    found = {"parasample", "parasample.kernels"}
    for root in ("parasample", "kernels"):
        for file in (ROOT / root).rglob("*.py"):
            parts = file.parent.relative_to(ROOT).parts
            found.add(".".join(("parasample", *parts) if root == "kernels" else parts))
    return sorted(found)


setup(
    packages=packages(),
    package_dir={"parasample": "parasample", "parasample.kernels": "kernels"},
    ext_modules=[Extension("parasample.kernels._native", sources=[])] if native_wanted() else [],
    cmdclass={"build_ext": CMakeBuild},
)
