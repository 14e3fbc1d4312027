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
from parasample.cli.bench.kernels.ops import dense_update, drift_aggregate
from parasample.cli.bench.kernels.ops import picard_update as entry
from parasample.cli.bench.kernels.registry import Call, Case, Contender, Op, find_ops
from parasample.kernels.drift_aggregate.reference import drift_aggregate_reference

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


DRIFT = [
    drift_aggregate.case(3, 64, parts=parts, outputs=outputs)
    for parts in ("", "clipped", "guided clipped", "guided rescaled clipped", "clipped mixed")
    for outputs in ("f32", "bf16")
]
DENSE = [
    dense_update.case(5, 64, B=2, noise=noise, outputs=dtype)
    for noise in (True, False)
    for dtype in ("f32", "bf16")
]


@pytest.mark.parametrize("case", DRIFT, ids=lambda case: case.label)
def test_every_contender_of_drift_aggregate_computes_it(case: Case) -> None:
    op = drift_aggregate.OP
    contenders = op.contenders(case, torch.device("cpu"))
    contenders.append(Contender("compile", lambda arguments: lambda: drift_aggregate_reference(*arguments)))
    gates = check(op, case, contenders, op.arguments(case, torch.device("cpu")))
    assert set(gates.values()) == {PASSED}, gates
    assert {"parasample", "eager"} <= set(gates) and ("published" in gates) == ("mixed" not in case.label)


@pytest.mark.parametrize("case", DENSE, ids=lambda case: case.label)
def test_every_contender_of_dense_update_computes_it(case: Case) -> None:
    op = dense_update.OP
    gates = check(op, case, op.contenders(case, torch.device("cpu")), op.arguments(case, torch.device("cpu")))
    assert gates.keys() >= {"parasample", "eager"} and set(gates.values()) == {PASSED}, gates


def test_every_op_but_the_gathering_of_inputs_is_timed() -> None:
    assert [op.name for op in find_ops()] == ["dense_update", "drift_aggregate", "picard_update"]


@pytest.mark.parametrize("op", find_ops(), ids=lambda op: op.name)
def test_goals_name_cases_that_are_measured(op: Op) -> None:
    for quick in (True, False):
        for device in ("cpu", "cuda"):
            labels = [case.label for case in op.cases(device, quick)]
            assert len(labels) == len(set(labels))
            wanted = {goal.case for goal in op.goals if goal.device == device}
            assert quick or wanted <= set(labels)
            assert any(case.in_sweep for case in op.cases(device, quick))


def test_text_says_who_was_not_timed(
    op: TinyWithAFault, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["bench", "kernels", "--quick", "--device", "cpu", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "not timed: failed: states off by" in shown and "Cold rows: wall-clock" in shown
