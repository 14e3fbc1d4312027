"""Every kind of pipeline in depth over real processes, which agree on every sample to the last bit."""

from __future__ import annotations

import pytest
import torch
from coverage_script import COVERED, STRIDED, batches, jobs
from processes import Answers, in_processes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return in_processes(jobs(2), 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return in_processes(jobs(3), 3, tmp_path_factory.mktemp("three"))


def check(answers: Answers, name: str) -> None:
    first = answers[0][name]
    assert "error" not in first, first
    for index, batch in enumerate(batches(name)):
        sequential = first["sequential"][index]
        assert not torch.equal(first["few"][index], sequential), "or nothing was in parallel"
        for found in (rank[name] for rank in answers):
            assert "error" not in found, found
            assert torch.equal(found["all"][index], sequential), f"batch {batch}: all steps as ever"
            assert torch.equal(found["few"][index], first["few"][index]), f"batch {batch}: ranks disagree"
            assert found["few"][index].isfinite().all()
    assert all(torch.equal(rank[name]["restored"][0], first["sequential"][0]) for rank in answers)


@pytest.mark.parametrize("name", COVERED)
def test_two_ranks(name: str, two: Answers) -> None:
    check(two, name)


@pytest.mark.parametrize("name", STRIDED)
def test_three_ranks_of_stride_two(name: str, three: Answers) -> None:
    check(three, name)
