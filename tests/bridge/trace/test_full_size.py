"""Full-size models, traced on the meta device: what crosses between devices stays small."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from parasample.bridge.meta import graph_from_config, read_config
from parasample.models import denoiser_config
from parasample.plan.partition import find_splits, report


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
TERAFLOPS = {"sd2.1": 4.30, "sdxl": 13.5, "sd3": 17.8}
GIGABYTES = {"sd2.1": 1.73, "sdxl": 5.13, "sd3": 4.17}


@pytest.mark.parametrize("model", LIMITS)
def test_splits_of_a_full_size_model(model: str) -> None:
    graph = graph_from_config(read_config(denoiser_config(model)))
    assert graph.total_cost / 1e12 == pytest.approx(TERAFLOPS[model], rel=0.01), "matrix products, attention"
    assert graph.total_weight_bytes / 1e9 == pytest.approx(GIGABYTES[model], rel=0.01)
    found = {n: [report(graph, split) for split in find_splits(graph, n)]
             for n in {limit.components for limit in LIMITS[model]}}  # fmt: skip
    for limit in LIMITS[model]:
        reports = found[limit.components]
        assert any(
            r.hidden_bytes <= limit.megabytes * 1e6 and r.max_compute <= limit.compute_share for r in reports
        ), f"{limit}: {[(r.hidden_bytes / 1e6, r.max_compute) for r in reports]}"
