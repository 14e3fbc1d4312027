"""House rules of the kernels folder, read off its imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
FILES = sorted(KERNELS.rglob("*.py"))


def imported(file: Path) -> list[tuple[int, str]]:
    """(level, module) of every import statement; level 0 is absolute."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(KERNELS).as_posix())
def test_kernels_import_nothing_else_of_parasample(file: Path):
    depth = len(file.relative_to(KERNELS).parts)  # this many dots lead to kernels itself
    for level, module in imported(file):
        assert level <= depth, f"from {'.' * level}{module} leaves the kernels folder"
        assert module.split(".")[0] not in ("parasample", "kernels", "diffusers"), module


@pytest.mark.parametrize("file", sorted(KERNELS.rglob("reference.py")), ids=lambda file: file.parent.name)
def test_reference_stands_alone(file: Path):
    """The truth must not lean on what it judges."""
    assert all(level == 0 for level, _ in imported(file))
