"""A run in depth sends what its plan says, step by step and to the byte."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from depth_script import NESTED, SPLIT
from tiny_pipelines import run, stable_diffusion
from traced_once import traced_once

import parasample as ps
from parasample.bridge.depth import AsyncHandle
from parasample.plan.partition import report
from parasample.plan.schedule import Schedule
from parasample.plan.simulate import planned_bytes

STEPS = 14  # nested components work ahead by up to 4 batches


@pytest.fixture(autouse=True, scope="module")
def one_denoiser() -> Iterator[None]:
    with traced_once(type):
        yield


def steady_bytes(schedule: Schedule) -> int:
    """Of a batch in the middle of a run as published, from the graph and the split alone.

    Every component gets the blocks that its own blocks read and that it does not compute; of the component
    with the output there are as many copies as a batch has steps. The output goes to all ranks but its maker.
    """
    graph, split, stride = schedule.graph, schedule.split, schedule.stride
    copies = [1] * (split.components - 1) + [stride]
    total = 0
    for component, count in enumerate(copies):
        read = {source for index in split.blocks_of(component) for source in graph.blocks[index].inputs}
        foreign = (index for index in read if component not in split.owners[index])
        total += count * sum(graph.blocks[index].output_bytes for index in foreign)
    return total + stride * (split.components + stride - 2) * graph.blocks[-1].output_bytes


@pytest.mark.parametrize("extrapolate", [None, "latents"], ids=["published", "ahead"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("components", [2, 3])
@pytest.mark.parametrize("splits", [SPLIT, NESTED], ids=["in-a-row", "nested"])
def test_bytes_are_those_of_the_plan(
    splits: dict[int, dict[str, int]], components: int, stride: int, extrapolate: str | None
) -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion()
    config = ps.Async(components, stride, warm_up=2, split=splits[components], extrapolate=extrapolate)
    with AsyncHandle(pipe, config, emulated=True) as handle:
        run(pipe, call, num_inference_steps=STEPS)
        (schedule,), stats = handle.schedules, handle.stats
    sent = [record.bytes_sent for record in stats.history]
    assert schedule.reading == ("stale" if extrapolate is None else "ahead")
    assert sent == [sum(step) for step in zip(*planned_bytes(schedule), strict=True)]
    middle = 2 + stride  # the second batch: nothing begins or ends in it
    if extrapolate is None:
        assert sum(sent[middle : middle + stride]) == steady_bytes(schedule)
    if stride == 1:  # ahead or not: in a row or in stages, everything travels once
        found = report(schedule.graph, schedule.split)
        assert sent[middle] == found.hidden_bytes + found.output_bytes
