"""Any number of components and any stride, all ranks played in one process."""

from __future__ import annotations

import pytest
import torch
from tiny_pipelines import STEPS, run, stable_diffusion
from traced_once import traced_once

import parasample as ps
from parasample.bridge.depth import AsyncHandle

SIZES = [(1, 1), (1, 4), (2, 3), (3, 2), (4, 4), (5, 1), (6, 2), (7, 1), (8, 1), (8, 4)]


def test_components_and_strides() -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion()
    expected = run(pipe, call)
    with traced_once(id):
        for components, stride in SIZES:
            with AsyncHandle(pipe, ps.Async(components, stride, warm_up=STEPS), emulated=True):
                assert torch.equal(run(pipe, call), expected), (components, stride)
            with AsyncHandle(pipe, ps.Async(components, stride), emulated=True) as handle:
                found = run(pipe, call)
                assert handle.schedules[0].num_ranks == components + stride - 1
            assert found.isfinite().all()
            assert torch.equal(found, expected) == (components == stride == 1), (components, stride)


@pytest.mark.parametrize("stride", range(1, 5))
@pytest.mark.parametrize("components", range(1, 9))
def test_another_number_of_ranks_is_told_the_right_one(components: int, stride: int) -> None:
    ranks = components + stride - 1
    if ranks == 1:
        ps.parallelize(stable_diffusion()[0], ps.Async(1)).restore()
        return
    with pytest.raises(ps.ConfigError, match=f"takes {ranks} ranks, found 1; run `torchrun .* {ranks}`"):
        ps.parallelize(stable_diffusion()[0], ps.Async(components, stride))
