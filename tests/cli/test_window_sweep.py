"""`benchmarks/window_sweep.py` on the CPU: stand-ins of the large models take the large models' path."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "window_sweep.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("window_sweep", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_plot_and_resumption(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sweep = load_script()
    options = ["--quick", "--json", "--device", "cpu", "--windows", "8", "--output", str(tmp_path)]
    assert sweep.main(options) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(row["size"], row["stand_in"]) for row in report["rows"]] == [
        ("demo", False), ("sd21", True), ("sdxl", True)
    ]  # fmt: skip
    for row in report["rows"]:
        assert row["round_ms"] > 0 and 1 < row["rounds"] < row["steps"] and row["device"]
        expected = row["steps"] * row["step_ms"] / (row["rounds"] * row["round_ms"])
        assert row["speedup"] == pytest.approx(expected)
    with Image.open(report["plot"]) as image:
        assert min(image.size) > 300
    assert sweep.main(options) == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["time"] for row in again["rows"]] == [row["time"] for row in report["rows"]]
