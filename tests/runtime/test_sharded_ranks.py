"""Weights spread over real processes: the same pictures, a part of the memory, every bit back at the end."""

from __future__ import annotations

import pytest
import torch
from processes import Answers, in_processes
from sharded_script import jobs


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return in_processes(jobs(), 2, tmp_path_factory.mktemp("sharded"))


EXACT = ["warm-up-all", "transformer", "two-calls"]
GOOD = [*EXACT, "ahead", "stride", "published", "linear", "nested-ahead"]


@pytest.mark.parametrize("job", GOOD)
def test_all_ranks_agree_calls_repeat_and_weights_come_back(job: str, together: Answers) -> None:
    for answers in together:
        found = answers[job]
        assert "error" not in found, found
        assert torch.equal(found["sample"], together[0][job]["sample"]), "ranks must agree to the last bit"
        assert torch.equal(found["again"], found["sample"]), "a call starts clean"
        assert found["restored"]
        assert found["sample"].isfinite().all()


@pytest.mark.parametrize("job", EXACT)
def test_warm_up_of_all_steps_is_sequential(job: str, together: Answers) -> None:
    """The pipeline across ranks computes what one rank would, to the last bit."""
    for answers in together:
        assert torch.equal(answers[job]["sample"], answers[job]["sequential"])
        assert answers[job]["held"] < answers[job]["total"]


@pytest.mark.parametrize("job", ["published", "linear", "nested-ahead"])
def test_sharding_changes_no_bit_after_the_warm_up(job: str, together: Answers) -> None:
    for answers in together:
        assert torch.equal(answers[job]["sample"], answers[job]["unsharded"])
        assert not torch.equal(answers[job]["sample"], answers[job]["sequential"])


@pytest.mark.parametrize("job", ["found-late-ahead", "found-late-stale"])
def test_what_only_the_first_step_shows_still_counts(job: str, together: Answers) -> None:
    for answers in together:
        found = answers[job]
        assert "error" not in found, found
        assert torch.equal(found["sample"], together[0][job]["sample"])
        assert torch.equal(found["sample"], found["unsharded"])
        assert torch.equal(found["sample"], found["known"]) == (job == "found-late-ahead")
        assert not torch.equal(found["sample"], found["sequential"])


@pytest.mark.parametrize("job", GOOD)
def test_every_rank_sends_the_bytes_of_its_plan_in_every_step(job: str, together: Answers) -> None:
    for answers in together:
        assert answers[job]["bytes"] == answers[job]["planned"]


def test_every_step_sends_as_much_as_the_one_before(together: Answers) -> None:
    """Also the first, and in a second call: nothing of an earlier call is counted."""
    for answers in together:
        assert len(set(answers["warm-up-all"]["bytes"])) == 1
        assert answers["warm-up-all"]["bytes"][0] > 0


def test_sizes_may_change_from_call_to_call(together: Answers) -> None:
    for answers in together:
        found = answers["sizes"]
        assert "error" not in found, found
        for sample, expected in zip(found["samples"], found["expected"], strict=True):
            assert torch.equal(sample, expected)


@pytest.mark.parametrize(("job", "broken"), [("broken-first-step", 1), ("broken-later", 0)])
def test_a_failing_rank_ends_all_and_every_bit_comes_back(job: str, broken: int, together: Answers) -> None:
    for rank, answers in enumerate(together):
        found = answers[job]
        assert found["error"] == ("Broken" if rank == broken else "TransportError"), found
        assert found["restored"] and found["works"]


def test_a_rank_holds_its_share_of_the_weights_and_no_more(together: Answers) -> None:
    for rank, answers in enumerate(together):
        found = answers["memory"]
        assert "error" not in found, found
        assert found["whole"] > 50e6
        assert found["aside"] == 0
        assert found["max_compute"] < 0.6
        assert found["held"] <= (found["max_compute"] + 0.10) * found["whole"]
        assert found["held"] == pytest.approx(found["shares"][rank] * found["whole"], rel=0.01)
        assert found["restored"]


def test_memory_falls_as_the_kernel_sees_it(together: Answers) -> None:
    for answers in together:
        found = answers["memory"]
        assert found["freed"] > 0.8 * found["whole"]
        assert found["resident"] < found["held"] + 0.25 * found["whole"], "and what a forward needs"
