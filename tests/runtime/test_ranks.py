"""Law 2: any number of ranks gives the same sample and rounds. Law 7: one rank's fault is an error on all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import Answers, in_processes
from rank_script import FAULTS, JOBS

SIZES = [2, 3, 4]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return in_processes(JOBS, 1, tmp_path_factory.mktemp("alone"))[0]


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"ranks{size}")
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return in_processes(JOBS | FAULTS, request.param, tmp_path_factory.mktemp("together"))


@pytest.mark.parametrize("job", JOBS)
def test_any_number_of_ranks_gives_the_same(job: str, together: Answers, alone: dict[str, Any]) -> None:
    expected = alone[job]
    exact = "exact" in job  # pads every round to whole shares
    for answers in together:
        found = answers[job]
        assert "error" not in found, found
        rounding = 1e-9 if found["sample"].dtype == torch.float64 else 1e-4
        torch.testing.assert_close(found["sample"], expected["sample"], rtol=rounding, atol=rounding)
        assert found["rounds"] == expected["rounds"]
        assert exact or found["evaluations"] == expected["evaluations"]
        assert torch.equal(found["sample"], together[0][job]["sample"]), "ranks must agree to the last bit"


@pytest.mark.parametrize("job", ["sample-ddim-7", "sample-published-10", "sample-frontier"])
def test_bytes_sent_is_what_others_gathered(job: str, together: Answers) -> None:
    """Each round every rank sends its share (rounded up to equal shares) of outputs to each of the others."""
    size, row_bytes = len(together), 24 * 8
    for answers in together:
        shares = [-(-evaluations // size) for evaluations in answers[job]["window"]]
        assert answers[job]["bytes_sent"] == sum(shares) * row_bytes * (size - 1)


def test_one_process_sends_nothing(alone: dict[str, Any]) -> None:
    assert all(alone[job]["bytes_sent"] == 0 for job in JOBS)


@pytest.mark.parametrize(
    ("fault", "what"),
    [("other-start", "starting latents"), ("other-generator", "generator"), ("other-steps", "schedule"),
     ("other-method", "method"), ("other-pipeline-seed", "starting latents")],
)  # fmt: skip
def test_ranks_that_disagree_are_refused_on_every_rank(fault: str, what: str, together: Answers) -> None:
    for answers in together:
        assert answers[fault].get("error") == "ConfigError", answers[fault]
        assert what in answers[fault]["message"] and "differs between" in answers[fault]["message"]


def test_nan_on_one_rank_is_an_error_on_every_rank(together: Answers) -> None:
    for answers in together:
        assert answers["nan-on-last"].get("error") == "DivergedError", answers["nan-on-last"]


def test_a_rank_that_dies_is_named_by_the_others(together: Answers) -> None:
    *others, dead = together
    assert dead["dead-rank"]["error"] == "Killed"
    for rank, answers in enumerate(others):
        assert answers["dead-rank"]["error"] == "TransportError", answers["dead-rank"]
        assert f"rank {rank} of {len(together)}" in answers["dead-rank"]["message"]


def test_every_fault_was_tried(together: Answers) -> None:
    assert all(FAULTS.keys() <= answers.keys() for answers in together)
