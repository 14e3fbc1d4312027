"""What users install: a complete source archive, a wheel that works alone, pure Python without a compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "demo_output", "*.so", "*.egg-info", "__pycache__", ".*_cache", "tests"
)

TRY_IT = """
import torch
import parasample
from parasample.kernels import faces, picard_update
from parasample.runtime.transports.shared_memory import unavailable

native = {status.face: status for status in faces()}["cpu"]
one = torch.ones(3, 1)
states = torch.arange(4.0).reshape(4, 1, 1).repeat(1, 1, 5)
residual = picard_update(states, states, torch.ones(3, 1, 5), None, one, 0 * one, one, 0 * one[:, 0],
                         torch.ones(3, 2), torch.ones(4), *(torch.tensor([i]) for i in (0, 3, 3)))
assert states[:, 0, 0].tolist() == [0, 1, 2, 3] and residual[1:, 0].tolist() == [0, 0, 0]
print(parasample.__file__, native.available, unavailable(), sep="|")
"""

SAMPLE_IT = """
import parasample as ps
from parasample.bridge.load import load_pipeline
from parasample.models import demo_model_path

pipe = load_pipeline(demo_model_path(), "cpu")
with ps.parallelize(pipe, ps.Picard(window="full")) as handle:
    image = pipe("a bag", num_inference_steps=20).images[0]
assert image.size[0] > 16 and image.getextrema() != ((0, 0),) * 3
print(handle.stats.rounds)
"""


def run(*command: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PARASAMPLE_", "PYTHONPATH"))}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The unpacked source archive, made from a copy of the tree so that nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_SOURCE)
    done = run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "-o", folder, folder / "tree")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with tarfile.open(next(folder.glob("parasample-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.glob("parasample-*") if path.is_dir())


def build_wheel(source: Path, folder: Path, **environment: str) -> tuple[Path, str]:
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-v", "-w", folder]
    done = run(sys.executable, "-m", "pip", "wheel", *options, source, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(folder.glob("parasample-*.whl")), done.stdout + done.stderr


def try_in_empty_environment(package: Path, folder: Path, **environment: str) -> tuple[Path, bool, str, str]:
    """Install a wheel or a source tree into a new environment that sees this one's torch; call the op there.

    Returns where the package lies, whether its ops are native, why it cannot use shared memory ("None" where
    it can), and what it wrote to stderr.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    purelib = sysconfig.get_path("purelib", vars={"base": str(folder)})
    # A folder named in a .pth file is searched, but its own .pth files are not read: an editable parasample
    # stays out of sight.
    Path(purelib, "torch_of_the_host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # Nothing can be fetched: pip finds every dependency that the package declares, or fails.
    options = ["--no-build-isolation", "--no-index", "--no-compile", "-q"]
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # cmake and ninja
    install = [sys.executable, "-m", "pip", "--python", python, "install", *options]
    target = ["."] if package.is_dir() else [package]
    done = run(*install, *target, cwd=package if package.is_dir() else None, PATH=tools, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done = run(python, "-c", TRY_IT, cwd=folder)  # not where the sources lie
    assert done.returncode == 0, done.stderr
    where, native, no_shm = done.stdout.splitlines()[-1].split("|")
    return Path(where), native == "True", no_shm, done.stderr


def test_pip_install_of_the_source_archive_works_alone(source: Path, tmp_path: Path):
    # CUDA is left out for time: its build is the same CMake project and is made by the build under test.
    where, native, no_shm, _ = try_in_empty_environment(source, tmp_path, PARASAMPLE_CUDA="0")
    assert where.is_relative_to(tmp_path) and native and no_shm == "None"
    package = where.parent
    assert (package / "kernels/_native/libparasample_ops.so").exists()
    assert (package / f"runtime/transports/_host{sysconfig.get_config_var('EXT_SUFFIX')}").exists()
    assert (package / "runtime/transports/_host.pyi").exists()
    models = [p.relative_to(ROOT / "parasample") for p in (ROOT / "parasample" / "models").rglob("*")]
    missing = [str(p) for p in models if "__pycache__" not in p.parts and not (package / p).exists()]
    assert not missing, f"package data is missing from the installed package: {missing}"

    done = run(tmp_path / "bin" / "parasample", "doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    works = {(face["op"], face["face"]): face["available"] for face in report["kernels"]}
    assert works["picard_update", "cpu"] and works["picard_update", "reference"]
    assert next(each for each in report["transports"] if each["transport"] == "shm")["available"]
    done = run(tmp_path / "bin" / "python", "-c", SAMPLE_IT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 20


def test_without_compiler_the_package_is_pure_python_and_says_so(source: Path, tmp_path: Path):
    wheel, log = build_wheel(source, tmp_path, CXX="no-such-compiler")
    assert "installing without native code, which needs a C++ compiler" in log
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")] and "parasample/kernels/__init__.py" in names
    assert wheel.name.endswith("py3-none-any.whl")
    where, native, no_shm, errors = try_in_empty_environment(wheel, tmp_path / "environment")
    assert where.is_relative_to(tmp_path) and not native
    assert "native module is missing" in no_shm
    assert errors.count("slow reference kernels") == 1


def test_native_code_can_be_demanded(source: Path, tmp_path: Path):
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-w", tmp_path, source]
    done = run(sys.executable, "-m", "pip", "wheel", *options, CXX="no-such-compiler", PARASAMPLE_NATIVE="1")
    assert done.returncode != 0
    assert "PARASAMPLE_NATIVE=1 but this environment lacks a C++ compiler" in done.stdout + done.stderr


def test_without_headers_the_host_module_is_left_out_and_the_build_says_so(tmp_path: Path):
    check = (
        "import pathlib, runpy, setuptools, sys\n"
        "setuptools.setup = lambda **options: None\n"
        "build = runpy.run_path('setup.py')\n"
        "includes, torch = build['host_includes'], build['torch_folder']()\n"
        "assert 'pybind11' in includes(torch)[1]\n"
        "sys.modules['pybind11'] = None\n"
        "assert includes(torch)[1] == str(torch / 'include')\n"
        f"assert includes(pathlib.Path({str(tmp_path)!r})) == []\n"
    )
    done = run(sys.executable, "-c", check, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("without the module _host, which needs pybind11") == 1
