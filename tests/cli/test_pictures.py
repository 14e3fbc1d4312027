"""The demo's pictures: what is drawn has room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from parasample.cli.pictures import images_figure


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
