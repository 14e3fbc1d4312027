"""The controller on plain numbers: which states a round evaluates, and which are finished."""

from __future__ import annotations

import math

import pytest

from parasample.plan.window import SampleProgress, share


def evaluated(num_steps: int, rows: list[int], errors: list[float]) -> SampleProgress:
    progress = SampleProgress(num_steps)
    progress.evaluated(rows)
    progress.advance(errors)
    return progress


@pytest.mark.parametrize(
    ("window", "limit", "rows"),
    [(1, 9, [0]), (4, 9, [0, 1, 2, 3]), (4, 2, [0, 1]), (99, 99, list(range(10)))],
)
def test_first_round_takes_the_earliest_rows(window: int, limit: int, rows: list[int]) -> None:
    assert SampleProgress(10).choose(window, limit, 0.5) == rows


def test_rows_that_hold_are_left_out() -> None:
    progress = evaluated(10, [0, 1, 2, 3], [2.0, 0.4, 0.6, 3.0])
    assert progress.begin == 1
    assert progress.choose(5, 9, 0.5) == [1, 3, 4, 5], "row 2 moved by 0.4 only; rows from 4 on are new"
    assert progress.choose(5, 9, 0.3) == [1, 2, 3, 4, 5]
    assert progress.choose(5, 9, -1.0) == [1, 2, 3, 4, 5], "a negative threshold evaluates everything"
    assert progress.choose(5, 2, 0.5) == [1, 3]


@pytest.mark.parametrize(
    ("errors", "begin"),
    [([0, 0, 0], 3), ([1.0, 1.0, 5.0], 3), ([1.01, 0, 0], 1), ([0.5, 2, 0], 2), ([math.inf] * 3, 1)],
)
def test_begin_moves_past_every_row_whose_evaluation_holds(errors: list[float], begin: int) -> None:
    assert evaluated(10, [0, 1, 2], errors).begin == begin


def test_begin_never_passes_a_row_that_was_not_evaluated() -> None:
    progress = evaluated(10, [0, 1], [0.0, 0.0, 0.0, 0.0])
    assert progress.begin == progress.hold + 1 == 2


def test_every_round_finishes_a_step() -> None:
    progress = SampleProgress(6)
    for step in range(6):
        assert not progress.done
        rows = progress.choose(3, 3, 0.5)
        assert rows[0] == progress.begin == step, "the first unfinished row is always evaluated"
        progress.evaluated(rows)
        progress.advance([math.inf] * (progress.scan_end(3) - progress.begin))
    assert progress.done
    assert progress.choose(3, 3, 0.5) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_error_that_is_not_a_number_finishes_nothing(value: float) -> None:
    progress = evaluated(10, [0, 1, 2], [value, 0.0, 0.0])
    assert progress.begin == 1
    assert 1 in progress.choose(3, 3, 0.5)


@pytest.mark.parametrize(("hold_rows", "end"), [([0], 5), ([0, 1, 2], 7), (list(range(9)), 10)])
def test_scan_fills_the_next_window(hold_rows: list[int], end: int) -> None:
    progress = SampleProgress(10)
    progress.evaluated(hold_rows)
    assert progress.scan_end(4) == end


def test_restart_forgets_later_rows() -> None:
    progress = evaluated(10, [0, 1, 2, 3, 4], [0, 0, 0, 5])
    assert progress.begin == 4
    progress.restart(2)
    assert (progress.begin, progress.hold) == (2, 1)
    assert progress.choose(3, 9, 0.5) == [2, 3, 4]


def test_finish_asks_for_the_replaced_row_again() -> None:
    progress = evaluated(10, [0, 1, 2, 3], [0.2, 9, 9])
    progress.finish(2)
    progress.advance([0.0, 0.0])
    assert progress.begin == 2, "row 2 was evaluated at a state that is no longer its own"
    assert progress.choose(2, 2, 0.5)[0] == 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("items", [1, 2, 5, 8, 12])
def test_shares_are_equal_and_cover_every_item_in_order(items: int, ranks: int) -> None:
    shares = [share(items, ranks, rank) for rank in range(ranks)]
    assert len({len(part) for part in shares}) == 1
    assert [position for part in shares for position in part][:items] == list(range(items))
    assert all(0 <= position < items for part in shares for position in part)
