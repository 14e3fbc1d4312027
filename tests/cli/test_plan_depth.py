"""`plan --devices N` shows a split, its bytes and its schedule, for models that are only a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from parasample.cli import main
from parasample.cli.plan_depth import ranges
from parasample.cli.schedule_picture import schedule_figure
from parasample.models import demo_model_path, denoiser_config, denoiser_names
from parasample.plan.blocks import Block, BlockGraph
from parasample.plan.partition import Split
from parasample.plan.schedule import Schedule
from parasample.plan.simulate import Costs, simulate


def test_a_split_of_the_shipped_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "schedule.png"
    options = ["--devices", "2", "--steps", "50", "--plot", str(plot), "--json"]
    assert main(["plan", "--model", str(demo_model_path()), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    parts = report["components"]
    assert len(parts) == 2 and all(0.4 < part["compute"] < 0.6 for part in parts)
    assert report["bytes_per_step"] == sum(edge["bytes"] for edge in report["edges"])
    assert report["bytes_per_step"] == sum(part["bytes_received"] for part in parts)
    assert 8 * report["bytes_per_step"] < report["broadcast_bytes"]
    assert 0 < report["search_s"] < 10
    assert 1.6 < report["predicted_speedup"] < 2
    assert sum(point["chosen"] for point in report["trade_off"]) == 1
    with Image.open(plot) as image:
        assert image.width > 1000


def test_text_names_blocks_and_what_is_saved(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--devices", "2", "--link", "0.001"]) == 0
    shown = " ".join(capsys.readouterr().out.split())  # lines break where they must
    assert "conv_in" in shown and "conv_out" in shown and "<- chosen" in shown
    assert "of each of the denoiser's modules were broadcast" in shown and "searched for" in shown


@pytest.mark.parametrize(
    ("model", "devices", "message"),
    [
        ("nowhere", "2", "no denoiser's config.json"),
        ("broken.json", "2", "no configuration with a _class_name"),
        ("strange.json", "2", "'Linear', which is no model"),
        ("rowless.json", "2", "no row of example inputs"),
        (None, "1000", "outside 1.."),
        (None, "0", "outside 1.."),
    ],
)
def test_errors_in_words(
    model: str | None, devices: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.json").write_text("{}")
    (tmp_path / "strange.json").write_text('{"_class_name": "Linear"}')
    (tmp_path / "rowless.json").write_text('{"_class_name": "AutoencoderTiny"}')
    chosen = ["--model", str(tmp_path / model)] if model else []
    assert main(["plan", "--devices", devices, *chosen]) == 2
    assert message in capsys.readouterr().err


def test_short_names_have_configurations() -> None:
    assert set(denoiser_names()) == {"sd2.1", "sdxl", "sd3", "flux"}
    assert all("_class_name" in json.loads(denoiser_config(name).read_text()) for name in denoiser_names())


def test_ranges_are_runs_of_neighbours() -> None:
    blocks = [Block(f"b{i}", 0, 1.0, (i - 1,) if i else (), 1, 0, i == 0) for i in range(6)]
    graph = BlockGraph((*blocks, Block("", 0, 0.0, (5,), 1, 0, False, True)))
    split = Split(((0, 1), (0,), (0,), (1,), (0,), (1,), (1,)))
    assert ranges(graph, split, 0) == ["b1 - b2", "b4"]
    assert ranges(graph, split, 1) == ["b3", "b5"]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_schedule_is_drawn(stride: int, tmp_path: Path) -> None:
    blocks = [Block(f"b{i}", 0, 1.0, (i - 1,) if i else (), 1, 0, False) for i in range(6)]
    graph = BlockGraph((*blocks, Block("", 0, 0.0, (5,), 1, 0, False, True)))
    split = Split(((0,), (0,), (1,), (1,), (2,), (2,), (2,)))
    schedule = Schedule(graph, split, 1 + 5 * stride, stride)
    timeline = simulate(schedule, Costs([1.0] * 6 + [0.0], bytes_per_second=1.0))
    path = tmp_path / "schedule.svg"
    schedule_figure(
        schedule, timeline, 1 + 2 * stride, 6.0, "title", "subtitle", ["first", "second", "third"], path
    )
    drawn = path.read_text()
    assert "</svg>" in drawn
    for text in ("one device", f"device {schedule.num_ranks - 1}", "third", "2-3" if stride == 2 else "3"):
        assert f"<!-- {text} -->" in drawn


def test_a_stride_takes_devices_from_the_components(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--devices", "3", "--stride", "2", "--shard-weights", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    parts = report["components"]
    assert len(parts) == 2 and max(part["weights"] for part in parts) <= 0.6
    received = sum(part["bytes_received"] for part in parts) + parts[-1]["bytes_received"]
    assert report["bytes_per_step"] == pytest.approx(received / 2, abs=1)
    assert report["predicted_speedup"] > 2.5
    assert main(["plan", "--devices", "2", "--stride", "3"]) == 2
    assert "stride=3 takes 2 devices" in capsys.readouterr().err
