"""The Frechet distance is the one of its formula."""

from __future__ import annotations

import pytest
import torch

from parasample.cli.bench.judge import frechet_distance


def test_distance_to_itself_is_zero() -> None:
    features = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-6)


def test_shift_and_scale_as_in_closed_form() -> None:
    features = torch.randn(500, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = torch.cov(features.T).trace()
    assert frechet_distance(features, features + 2.0) == pytest.approx(4.0 * 8, rel=1e-6)
    scaled = (features - features.mean(0)) * 3 + features.mean(0)
    assert frechet_distance(features, scaled) == pytest.approx(float(4 * spread), rel=1e-6)
