"""Depth over real processes: all ranks agree to the last bit; one rank's fault is an error on every rank."""

from __future__ import annotations

import pytest
import torch
from depth_script import jobs
from processes import Answers, in_processes


@pytest.fixture(scope="module", params=[2, 3], ids=lambda size: f"ranks{size}")
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return in_processes(jobs(request.param), request.param, tmp_path_factory.mktemp("depth"))


GOOD = ["warm-up-all", "published", "stride", "linear", "latents", "nested", "nested-stride", "two-calls"]


@pytest.mark.parametrize("job", GOOD)
def test_all_ranks_agree_and_calls_repeat(job: str, together: Answers) -> None:
    for answers in together:
        found = answers[job]
        assert "error" not in found, found
        assert torch.equal(found["sample"], together[0][job]["sample"]), "ranks must agree to the last bit"
        assert torch.equal(found["again"], found["sample"]), "a call starts clean"
        assert torch.equal(found["restored"], found["sequential"])
        assert found["sample"].isfinite().all()


@pytest.mark.parametrize("job", GOOD)
def test_every_rank_sends_the_bytes_of_its_plan_in_every_step(job: str, together: Answers) -> None:
    for answers in together:
        assert answers[job]["bytes"] == answers[job]["planned"]
    assert sum(sum(answers[job]["bytes"]) for answers in together) > 0


def test_warm_up_of_all_steps_is_sequential(together: Answers) -> None:
    for answers in together:
        assert torch.equal(answers["warm-up-all"]["sample"], answers["warm-up-all"]["sequential"])


def test_published_is_not_sequential(together: Answers) -> None:
    """Otherwise the tests of agreement would show nothing."""
    assert not torch.equal(together[0]["published"]["sample"], together[0]["published"]["sequential"])


def test_sizes_and_steps_may_change_from_call_to_call(together: Answers) -> None:
    for answers in together:
        found = answers["sizes"]
        assert "error" not in found, found
        assert found["shapes"] == [(2, 4, 8, 8), (2, 4, 16, 16), (1, 4, 8, 8), (2, 4, 8, 8)]
        assert torch.equal(found["back"], found["sample"])


@pytest.mark.parametrize(
    ("fault", "what"),
    [("other-prompt", "prompt"), ("other-seed", "latents"), ("other-method", "method"),
     ("other-steps", "schedule")],
)  # fmt: skip
def test_ranks_that_disagree_are_refused_on_every_rank(fault: str, what: str, together: Answers) -> None:
    for answers in together:
        assert answers[fault].get("error") == "ConfigError", answers[fault]
        assert what in answers[fault]["message"] and "differs between" in answers[fault]["message"]


def test_a_wrong_number_of_ranks_names_the_right_one(together: Answers) -> None:
    for answers in together:
        assert answers["wrong-ranks"]["error"] == "ConfigError"
        assert f"takes {len(together) + 1} ranks, found {len(together)}" in answers["wrong-ranks"]["message"]


def test_a_failing_rank_ends_all_and_pipelines_are_restored(together: Answers) -> None:
    *others, broken = together
    assert broken["broken"]["error"] == "Broken"
    for answers in others:
        assert answers["broken"]["error"] == "TransportError", answers["broken"]
    for answers in together:
        assert torch.equal(answers["broken"]["restored"], answers["broken"]["sequential"])
