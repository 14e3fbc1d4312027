"""Contiguous splits: even, few bytes across, and every component reads only earlier ones."""

from __future__ import annotations

import pytest
from graphs import chain, small_unet

from parasample.errors import ConfigError
from parasample.plan.partition import contiguous_split, report
from parasample.plan.partition.stages import flows_forward, hops


@pytest.mark.parametrize("components", [1, 2, 3, 4, 5])
def test_components_follow_one_another(components: int) -> None:
    graph = small_unet(depth=4, layers=2)
    split = contiguous_split(graph, components)
    assert split.components == components
    assert flows_forward(graph, split)
    assert hops(graph, split) == components - 1


def test_the_largest_share_is_as_small_as_can_be() -> None:
    graph = chain([3.0, 1.0, 1.0, 1.0, 2.0, 4.0])
    assert report(graph, contiguous_split(graph, 2)).max_compute == pytest.approx(0.5)
    assert report(graph, contiguous_split(graph, 3)).max_compute == pytest.approx(1 / 3)


def test_of_even_splits_the_one_that_sends_less_is_taken() -> None:
    graph = small_unet(depth=3, layers=1)
    narrow = contiguous_split(graph, 2)
    assert report(graph, narrow).max_compute <= 0.51


def test_more_components_than_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="components=9 is outside"):
        contiguous_split(chain([1.0, 1.0, 1.0]), 9)
