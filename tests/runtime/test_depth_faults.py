"""Law 7 over real processes: what cannot work is an error on every rank, and every pipeline works again."""

from __future__ import annotations

import pytest
from depth_faults import FAULTS, jobs
from processes import EXCHANGE_TIMEOUT_S, Answers, in_processes


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return in_processes(jobs(), 2, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_on_every_rank(name: str, both: Answers) -> None:
    _, errors, message = FAULTS[name]
    for answers, error in zip(both, errors, strict=True):
        found = answers[name]
        assert found["error"] == error, found
        assert message in found["message"], found
        assert found.get("usable", True), "the next call starts clean"
        assert found["restored"], "the pipeline is as it was"
        assert found["seconds"] < EXCHANGE_TIMEOUT_S, "nobody waits for the time-out"
