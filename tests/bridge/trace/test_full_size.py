"""Full-size models, traced on the meta device: what crosses between devices stays small."""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple

import pytest

from parasample.bridge.meta import graph_from_config, meta_denoiser, read_config
from parasample.models import denoiser_config
from parasample.plan.blocks import BlockGraph
from parasample.plan.partition import Split, broadcast_bytes, choose_split, possible_splits, report
from parasample.plan.schedule import Schedule
from parasample.plan.timetable import READINGS
from parasample.runtime.sharding import needed_places

SEARCH_S = 10  # of the processor's time


class Limit(NamedTuple):
    components: int
    megabytes: float
    compute_share: float


# Bytes per step in half precision with guidance, and the largest compute share, both of one split.
LIMITS = {
    "sd2.1": (Limit(2, 9, 0.51), Limit(4, 37, 0.27)),
    "sdxl": (Limit(2, 8, 0.54), Limit(3, 19, 0.35), Limit(4, 40, 0.29), Limit(4, 50, 0.253)),
    "sd3": (Limit(4, 82, 0.255),),
}
# Of the split that is taken where none is named.
CHOSEN = {
    "sd2.1": (Limit(2, 10, 0.51), Limit(4, 38, 0.27)),
    "sdxl": (Limit(2, 9, 0.54), Limit(3, 22, 0.36), Limit(4, 42, 0.29)),
}
# MB per step that AsyncDiff's own code broadcasts for these, counted on the meta device, too.
PUBLISHED = {("sd2.1", 2): 146, ("sd2.1", 4): 562, ("sdxl", 2): 257, ("sdxl", 4): 827}
TERAFLOPS = {"sd2.1": 4.30, "sdxl": 13.5, "sd3": 17.8}
GIGABYTES = {"sd2.1": 1.73, "sdxl": 5.13, "sd3": 4.17}


@cache
def graph_of(model: str) -> BlockGraph:
    return graph_from_config(read_config(denoiser_config(model)))


@cache
def found(model: str, components: int) -> tuple[tuple[Split, ...], float]:
    """Splits, and the processor's seconds that the search took."""
    graph, began_at = graph_of(model), time.process_time()
    splits = possible_splits(graph, components)
    return splits, time.process_time() - began_at


@pytest.mark.parametrize("model", LIMITS)
def test_splits_of_a_full_size_model(model: str) -> None:
    graph = graph_of(model)
    assert graph.total_cost / 1e12 == pytest.approx(TERAFLOPS[model], rel=0.01), "matrix products, attention"
    assert graph.total_weight_bytes / 1e9 == pytest.approx(GIGABYTES[model], rel=0.01)
    for limit in LIMITS[model]:
        splits, seconds = found(model, limit.components)
        reports = [report(graph, split) for split in splits]
        assert any(
            r.hidden_bytes <= limit.megabytes * 1e6 and r.max_compute <= limit.compute_share for r in reports
        ), f"{limit}: {[(r.hidden_bytes / 1e6, r.max_compute) for r in reports]}"
        assert seconds < SEARCH_S


@pytest.mark.parametrize(("model", "limit"), [(model, limit) for model in CHOSEN for limit in CHOSEN[model]])
def test_the_chosen_split_sends_little_and_is_even(model: str, limit: Limit) -> None:
    graph = graph_of(model)
    chosen = report(graph, choose_split(graph, found(model, limit.components)[0]))
    assert chosen.hidden_bytes <= limit.megabytes * 1e6
    assert chosen.max_compute <= limit.compute_share


@pytest.mark.parametrize(("model", "components"), PUBLISHED)
def test_the_chosen_split_sends_an_eighth_of_a_broadcast(model: str, components: int) -> None:
    """The denoiser's output included. What we count of a broadcast is less than what is published."""
    graph = graph_of(model)
    chosen = report(graph, choose_split(graph, found(model, components)[0]))
    broadcast = broadcast_bytes(graph, components)
    assert 0.6 * PUBLISHED[model, components] <= broadcast / 1e6 <= PUBLISHED[model, components]
    assert 8 * (chosen.hidden_bytes + chosen.output_bytes) <= broadcast


@pytest.mark.parametrize(("model", "components"), [("sd2.1", 2), ("sd2.1", 4), ("sdxl", 2), ("sdxl", 4)])
def test_a_rank_holds_its_share_of_the_weights(model: str, components: int) -> None:
    """Counted tensor by tensor as a run keeps them; most of a U-Net's weights are in a few inner blocks."""
    graph, denoiser = graph_of(model), meta_denoiser(read_config(denoiser_config(model)))
    began_at = time.process_time()
    split = choose_split(graph, possible_splits(graph, components, even_weights=True))
    assert time.process_time() - began_at < SEARCH_S
    found = report(graph, split)
    size_of = {
        (id(module), name): tensor.nbytes
        for module in denoiser.modules()
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    for reading in READINGS:
        schedule = Schedule(graph, split, 10, reading=reading)
        for rank in range(components):
            stages = [schedule.stage(worker) for worker in schedule.workers_on(rank)]
            places = set().union(*(needed_places(denoiser, schedule, stage) for stage in stages))
            held = sum(size_of.get(place, 0) for place in places) / sum(size_of.values())
            assert held == pytest.approx(found.weight_shares[rank], abs=0.005)
            assert held <= found.max_compute + 0.10
            assert held <= 1 / components + 0.10
