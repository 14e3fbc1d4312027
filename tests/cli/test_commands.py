"""Every command runs, says what it can do, and its JSON is one object on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from parasample.cli import main
from parasample.cli.bench import BENCHES
from parasample.cli.bench.exchange import TRANSPORTS

COMMANDS = (
    ["demo"],
    ["plan"],
    ["doctor"],
    ["bench"],
    *(["bench", module.__name__.rpartition(".")[2]] for module in BENCHES),
)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--help"])
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert f"example:\n  parasample {' '.join(command)}" in shown


def test_doctor_names_kernels_and_transports(capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "doctor")
    works = {t["transport"]: t["available"] for t in report["transports"]}
    assert works["local"] and works["shm"] and works.keys() == {"local", "shm", "gloo", "nccl"}
    assert {face["face"] for face in report["kernels"]} >= {"reference", "cpu", "cuda", "triton"}
    assert all(entry["reason"] for entry in [*report["kernels"], *report["transports"]])
    assert report["versions"]["torch"] != "not installed"


def test_doctor_text_fits_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "picard_update" in capsys.readouterr().out


def test_demo_writes_pictures_and_a_table(
    capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
) -> None:
    report = run_json(capsys, "demo", "--quick", "--model", str(model_folder), "--output", str(tmp_path))
    for name in ("images.png", "trajectory.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == report["rows"]
    *pairs, depth = report["rows"]
    sequential, parallel = pairs[::2], pairs[1::2]
    assert depth["method"] == "2 devices" and 0 < depth["rms"] < 0.2 and depth["speedup"] > 1
    assert all(p["rounds"] < s["rounds"] for s, p in zip(sequential, parallel, strict=True))
    assert all(row["rms"] < 0.05 for row in parallel)
    assert report["verdict"]


def test_plan_recommends_and_draws(
    capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "plan.png"
    report = run_json(capsys, "plan", "--model", str(model_folder), "--steps", "16", "--plot", str(plot))
    assert [p["window"] for p in report["predictions"]] == [1, 4, 8, 16]
    assert report["recommended_window"] in (1, 4, 8, 16)
    assert all(1 < p["rounds"] <= 16 for p in report["predictions"])
    assert plot.stat().st_size > 0


def test_bench_rounds_writes_rows_and_resumes(
    capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
) -> None:
    options = [
        "bench",
        "frontier",
        "--quick",
        "--model",
        str(model_folder),
        "--output",
        str(tmp_path),
        "--states",
        "4",
    ]
    first = run_json(capsys, *options)["rows"]
    lines = (tmp_path / "frontier_quick.jsonl").read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["device"]
    assert first[0]["rounds"] < 50 and first[0]["rms"] < 0.05
    again = run_json(capsys, *options)["rows"]
    assert again[0]["time"] == first[0]["time"], "a row that the file has is not measured again"


def test_bench_rounds_gives_the_published_rule_tolerances_of_its_own(
    capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
) -> None:
    options = ["bench", "rounds", "--quick", "--model", str(model_folder), "--output", str(tmp_path)]
    options += ["--cases", "dpm++-50", "--guidance", "1", "--tolerance", "0.02"]
    rows = run_json(capsys, *options, "--published-tolerance", "0.01", "1")["rows"]
    assert [(row["label"], row["tolerance"]) for row in rows] == [
        ("published", 0.01), ("published", 1), ("secant", 0.02),
    ]  # fmt: skip
    assert rows[0]["rounds"] > rows[1]["rounds"] and rows[0]["rms"] < rows[1]["rms"]


def test_bench_overhead_tells_the_model_from_the_rest(
    capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
) -> None:
    options = ["bench", "overhead", "--quick", "--model", str(model_folder), "--output", str(tmp_path)]
    rows = run_json(capsys, *options)["rows"]
    assert [row["where"] for row in rows] == ["pipeline", "ps.sample"] * 2
    assert all(0 < row["share"] < 1 and 0 < row["rounds"] < 100 for row in rows)
    assert all((row["loop_ms"] > 0) == (row["where"] == "pipeline") for row in rows)


def test_bench_exchange_measures_every_transport_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "exchange", "--sizes", "4096", "--output", str(tmp_path)]) == 0
    rows = {
        row["transport"]: row
        for row in map(json.loads, (tmp_path / "exchange.jsonl").read_text().splitlines())
    }
    left_out = [name for name, reason in TRANSPORTS.items() if reason is not None]
    assert set(rows) | set(left_out) == {*TRANSPORTS, "torch", "copy"}
    for row in rows.values():
        assert row["microseconds_p20"] <= row["microseconds"] <= row["microseconds_p80"]
        assert row["gigabytes_per_second"] == pytest.approx(4096 / row["microseconds"] / 1e3)
    assert rows["copy"]["microseconds"] < rows["torch"]["microseconds"]
    assert (tmp_path / "exchange.png").exists()
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*rows, *left_out])


def test_a_rank_of_bench_ranks_answers(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tmp_path / "task.json"
    task.write_text(
        json.dumps({"sampler": "ddim", "steps": 10, "window": "full", "batch": 1, "guidance": 5.0})
    )
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["bench", "ranks", "--worker", str(task), "--model", str(model_folder)]) == 0
    answer = torch.load(task.with_suffix(".answer"), weights_only=True)
    assert answer["seconds"] > 0 and 1 < answer["rounds"] <= 10 and answer["latents"].isfinite().all()


def test_a_wrong_model_folder_is_an_error_in_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["plan", "--model", str(tmp_path)]) == 2
    assert "model_index.json" in capsys.readouterr().err
