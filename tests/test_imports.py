"""The import rule of the house: imports go down only, and each outside library has its one place."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# parasample.<layer>: what it may import ("" is the front door); kernels may not read errors and config.
ALLOWED = {
    "cli": {"", "cli", "bridge", "runtime", "plan", "kernels", "models"},
    "models": {"models", "bridge", "runtime", "plan"},
    "bridge": {"bridge", "runtime", "plan"},
    "runtime": {"runtime", "plan", "kernels"},
    "plan": {"plan"},
    "kernels": {"kernels"},
    "config": set(),
    "errors": set(),
}
GROUND = {"errors", "config"}
STANDARD_ONLY = {"plan", "config", "errors"}
# Libraries that may be imported in one place only.
PLACES = {
    "diffusers": ("parasample/bridge/",),
    "torch.distributed": ("parasample/runtime/transports/",),
}
# With its CUDA builds; elsewhere the Triton kernels say that it is missing.
COMES_WITH_TORCH = {"triton"}


def sources() -> list[Path]:
    packages = [ROOT / "parasample", ROOT / "kernels"]
    return sorted(p for package in packages for p in package.rglob("*.py") if "_native" not in p.parts)


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":  # the folder is installed as parasample.kernels
        parts = ["parasample", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Every module that a file names in an import, at any depth of the code; relative ones made absolute."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def layer(module: str) -> str | None:
    """`plan` for parasample.plan.table; None outside parasample; "" for parasample itself."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "parasample" else None


FILES = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in sources()]


@pytest.mark.parametrize("path", FILES)
def test_imports_go_down_only(path: Path) -> None:
    own = layer(module_name(path))
    if not own:
        return  # parasample/__init__.py is the front door
    allowed = ALLOWED[own] | (GROUND if own != "kernels" else set())
    found = {layer(module) for module in imported(path)} - {None}
    assert found <= allowed | ({own} if own in GROUND else set()), f"{own} may import {sorted(allowed)}"


@pytest.mark.parametrize("path", [p for p in FILES if layer(module_name(p.values[0])) in STANDARD_ONLY])
def test_plans_need_the_standard_library_only(path: Path) -> None:
    outside = {module.partition(".")[0] for module in imported(path)} - {"parasample"}
    assert outside <= sys.stdlib_module_names


@pytest.mark.parametrize("path", FILES)
def test_libraries_have_their_place(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    for library, places in PLACES.items():
        uses = {m for m in imported(path) if m == library or m.startswith(library + ".")}
        assert not uses or where.startswith(places), f"{library} belongs in {places}"


def test_every_library_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    used = {module.partition(".")[0] for path in sources() for module in imported(path)}
    libraries = used - set(sys.stdlib_module_names) - {"parasample", *COMES_WITH_TORCH}
    # Pillow writes the pictures, called by Matplotlib and diffusers.
    assert libraries == declared - {"pillow"}


@pytest.mark.parametrize("path", [p for p in FILES if p.values[0].name == "reference.py"])
def test_a_reference_knows_no_fast_sibling(path: Path) -> None:
    own = module_name(path).rpartition(".")[0]
    assert not {module for module in imported(path) if module.startswith("parasample.")}, own


def test_the_reader_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    package = tmp_path / "parasample" / "plan"
    package.mkdir(parents=True)
    (package / "x.py").write_text(
        "import a.b\nfrom . import c\nfrom ..runtime import d\ndef f():\n    from e.f import g\n"
    )
    assert imported(package / "x.py") == {"a.b", "parasample.plan.c", "parasample.runtime.d", "e.f.g"}
