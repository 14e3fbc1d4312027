"""The demo's pictures: what is drawn has room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from parasample.cli.depth_picture import _depth, depth_figure
from parasample.cli.pictures import _trajectory, fidelity_figure, images_figure


@pytest.mark.parametrize("sampler", ["DDIM", "DPM-Solver++ 2M", "Euler ancestral with a longer name"])
def test_row_labels_keep_off_the_pictures(sampler: str, tmp_path: Path) -> None:
    row = {"sampler": sampler, "steps": 1000, "rounds": 1000, "seconds": 123.4}
    black = torch.zeros(2, 8, 8, 3)
    strips = [(row | {"method": method}, black) for method in ("sequential", "parallel")]
    images_figure(strips, ["a bag", "a dress"], tmp_path / "images.png")
    with Image.open(tmp_path / "images.png") as image:
        grey = np.asarray(image.convert("L"))
    grey = grey[120:]  # below the title and the prompts
    first = int(((grey < 50).mean(axis=0) > 0.5).argmax())  # the left edge of the black pictures
    assert first > 0
    assert (grey[:, first - 30 : first - 2] > 250).all(), "about 0.2 inches must stay white before them"
    assert (grey[:, : first - 30] < 200).any(), "the label is drawn"


def test_distances_too_small_to_tell_are_marked(tmp_path: Path) -> None:
    def row(label: str, rounds: int, value: float) -> dict[str, Any]:
        return {"label": label, "rounds": rounds, "rms": value, "frechet": value}

    rows = [row("ours", 3, 0.1), row("published", 5, 0.2), row("fewer steps", 3, 0.3)]
    drawn = []
    for last in (1e-5, 1e-9):
        fidelity_figure([*rows, row("ours", 7, last)], 20, "title", tmp_path / "fidelity.png")
        with Image.open(tmp_path / "fidelity.png") as image:
            drawn.append(np.asarray(image.convert("L")))
    assert (drawn[0] != drawn[1]).any(), "at the edge and below it look different"


def test_every_rule_of_depth_is_drawn_once_in_the_legend(tmp_path: Path) -> None:
    rows = [
        {"title": "DDIM", "steps": 50, "label": label, "components": n, "stride": 1, "warm_up": w,
         "path": 50 / n + w, "rms": rms * n / w}
        for n in (2, 3) for w in (1, 5)
        for label, rms in (("published", 1e-1), ("auto", 1e-3), ("fewer steps", 1e-2))
    ]  # fmt: skip
    drawn = []
    for kept in (rows, [row for row in rows if row["label"] != "auto"]):
        figure = _depth(kept)
        drawn.append([text.get_text() for text in figure.legends[0].get_texts()])
        plt.close(figure)
    assert drawn[0] == ["fewer sequential steps", "AsyncDiff as published", "parasample"]
    assert drawn[1] == drawn[0][:2]
    depth_figure(rows, tmp_path / "depth.png")
    assert (tmp_path / "depth.png").stat().st_size > 10_000


def test_the_trajectory_fills_its_picture() -> None:
    figure = _trajectory(np.full((3, 10), 0.1), [2, 6, 10], torch.zeros(3, 8, 8, 3), ("title", "prompt"))
    figure.canvas.draw()
    below = min(axes.get_tightbbox().y0 for axes in figure.axes) / figure.dpi  # type: ignore[union-attr]
    plt.close(figure)
    assert 0.1 < below < 0.35, "inches of white below the lowest label"
