"""Law 1 and law 4 on unmodified diffusers pipelines."""

from __future__ import annotations

import pytest
import torch
from tiny_pipelines import PIPELINES, STEPS, run

import parasample as ps


@pytest.mark.parametrize("window", [1, 4, "full"])
@pytest.mark.parametrize("name", PIPELINES)
def test_tolerance_zero_equals_sequential(name: str, window: int | str) -> None:
    torch.manual_seed(0)
    pipe, call = PIPELINES[name]()
    expected = run(pipe, call)
    with ps.parallelize(pipe, ps.Picard(window=window, tolerance=0)) as handle:
        found = run(pipe, call)
        again = run(pipe, call)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found, again), "a second call must start clean"
    assert handle.stats.rounds <= STEPS
    assert torch.equal(run(pipe, call), expected), "restore() must be exact"
