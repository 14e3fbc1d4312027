"""`parasample bench kernels`: nothing wrong is timed, nothing is measured twice, plots are drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from parasample.cli import main
from parasample.cli.bench import kernels
from parasample.cli.bench.kernels import PASSED, check, clock
from parasample.cli.bench.kernels.ops import picard_update as entry
from parasample.cli.bench.kernels.registry import Call, Case, Contender

CASES = [
    entry.case(3, 64, hot=True),
    entry.case(3, 64, in_sweep=True),
    entry.case(3, 256, in_sweep=True),
    entry.case(3, 64, B=2, noise=False, states="bf16", outputs="bf16"),
]


class TinyWithAFault(entry.PicardUpdate):
    """The op at tiny shapes, with one contender that does nothing."""

    calls_of_wrong = 0

    def cases(self, device: str, quick: bool) -> list[Case]:
        return CASES

    def contenders(self, case: Case, device: torch.device) -> list[Contender]:
        return [*super().contenders(case, device), Contender("wrong", self._wrong, "eager")]

    def _wrong(self, arguments: entry.Arguments) -> Call:
        def call() -> torch.Tensor:
            self.calls_of_wrong += 1
            return torch.zeros(arguments.states.shape[:2])

        return call


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> TinyWithAFault:
    found = TinyWithAFault()
    monkeypatch.setattr(kernels, "find_ops", lambda: [found])
    monkeypatch.setattr(clock, "PASSES_SECONDS", 0.001)
    monkeypatch.setattr(clock, "PRODUCT_SIZE", {"cpu": 64})
    monkeypatch.setattr(clock, "COPY_BYTES", {"cpu": 2**20})
    return found


def run_json(capsys: pytest.CaptureFixture[str], output: Path) -> dict[str, Any]:
    arguments = ["bench", "kernels", "--quick", "--json", "--device", "cpu", "--output", str(output)]
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_plots_gate_and_resumption(
    op: TinyWithAFault, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = run_json(capsys, tmp_path)
    rows = report["rows"]
    assert {row["case"] for row in rows} == {case.label for case in CASES}
    for row in rows:
        assert (
            row["device"] and row["versions"]["torch"] and row["calls" if row["gate"] == PASSED else "case"]
        )
    timed = [row for row in rows if row["gate"] == PASSED]
    assert {"parasample", "eager", "published"} <= {row["contender"] for row in timed}
    assert all(0 < row["us_p20"] <= row["us"] <= row["us_p80"] and row["calls"] >= 20 for row in timed)
    assert all((row["share"] is None) == row["hot"] for row in timed)
    assert len(report["plots"]) == 2
    for plot in report["plots"]:
        with Image.open(plot) as image:
            assert min(image.size) > 300

    wrong = [row for row in rows if row["contender"] == "wrong"]
    assert len(wrong) == op.calls_of_wrong == len(CASES), "called once per case, by the gate"
    assert all(row["gate"].startswith("failed: states off by") and "us" not in row for row in wrong)

    lines = Path(report["file"]).read_text()
    again = run_json(capsys, tmp_path)
    assert [row["time"] for row in again["rows"]] == [row["time"] for row in rows]
    assert Path(report["file"]).read_text() == lines and op.calls_of_wrong == len(CASES)


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("update", [entry.cumulative, entry.row_by_row])
def test_what_is_compiled_computes_the_recurrence(update: Any, K: int, noise: bool, dtype: str) -> None:
    case = entry.case(5, 64, B=2, K=K, noise=noise, states=dtype, outputs=dtype)
    contender = Contender("compile", entry.on_round(update))
    arguments = entry.OP.arguments(case, torch.device("cpu"))
    assert check(entry.OP, case, [contender], arguments) == {"compile": PASSED}


def test_goals_name_cases_that_are_measured() -> None:
    for quick in (True, False):
        for device in ("cpu", "cuda"):
            labels = [case.label for case in entry.OP.cases(device, quick)]
            assert len(labels) == len(set(labels))
            wanted = {goal.case for goal in entry.OP.goals if goal.device == device}
            assert quick or wanted <= set(labels)


def test_text_says_who_was_not_timed(
    op: TinyWithAFault, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["bench", "kernels", "--quick", "--device", "cpu", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "not timed: failed: states off by" in shown and "Cold rows: wall-clock" in shown
