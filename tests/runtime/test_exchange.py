"""Every transport moves every message, in order and whole; whatever goes wrong is an error on every rank."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exchange_script import JOBS, REFUSED, ROUNDS, every_dtype_and_shape, lose_a_rank, work

SIZE = 3
TIMEOUT_S = 60  # of a group of processes; a hang is what it is there to catch
TRANSPORTS = {"shm": "SharedMemoryExchange", "gloo": "GlooExchange"}
Answers = list[dict[str, Any]]


def spawn(target: Callable[..., None], transport: str, folder: Path) -> tuple[Answers, list[int | None]]:
    """What each rank answered (nothing for one that was killed), and how each ended."""
    context = multiprocessing.get_context("fork")
    results = [folder / f"result-{rank}.pt" for rank in range(SIZE)]
    processes = [
        context.Process(target=target, args=(rank, SIZE, folder / "rendezvous", results[rank], transport))
        for rank in range(SIZE)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(TIMEOUT_S)
    finally:
        for process in processes:
            process.kill()
    answers = [torch.load(path, weights_only=False) if path.exists() else {} for path in results]
    return answers, [process.exitcode for process in processes]


def segments() -> set[Path]:
    return set(Path("/dev/shm").glob("parasample-*"))


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def together(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    answers, ends = spawn(work, transport, tmp_path_factory.mktemp(transport))
    assert ends == [0] * SIZE, "a rank hung or crashed"
    assert [answer["type"] for answer in answers] == [TRANSPORTS[transport]] * SIZE
    return answers


@pytest.mark.parametrize("when", ["order", "again"])
def test_messages_arrive_in_order_at_every_reader(when: str, together: Answers) -> None:
    """For all dtypes and shapes; `again` after other channels, and after channels that were refused."""
    for answers in together:
        assert answers[when] == [True] * (ROUNDS * len(every_dtype_and_shape()) * 2 // 3)


@pytest.mark.parametrize("keep", [1, 2])
def test_kept_messages_stay_whole_while_the_sender_runs_ahead(keep: int, together: Answers) -> None:
    for answers in together[1:]:
        assert answers[f"kept-{keep}"] == [True] * (ROUNDS if keep == 1 else 2 * ROUNDS - 1)


def test_strided_tensors_are_sent_as_they_look(together: Answers) -> None:
    assert [answers["strided"] for answers in together] == [True] * SIZE


def test_gradients_and_inference_mode_do_not_matter(together: Answers) -> None:
    assert [answers["across-modes"] for answers in together] == [True] * SIZE


def test_bytes_sent_counts_every_reader(together: Answers) -> None:
    assert [answers["counted"] for answers in together] == [2 * 3 * 4, 5 * 8, 0]


def test_a_forked_process_does_not_end_the_exchange(together: Answers) -> None:
    assert [answers["after-a-fork"] for answers in together] == [True] * SIZE


def test_a_received_tensor_outlives_its_channels(together: Answers) -> None:
    assert [answers["kept-after-close"] for answers in together] == [True] * SIZE


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_work_is_refused_on_every_rank(fault: str, together: Answers) -> None:
    for answers in together:
        assert answers[fault].get("error") == "ConfigError", answers[fault]


def test_missing_memory_is_an_error_on_every_rank(together: Answers) -> None:
    for answers in together:
        assert answers["too-big"]["error"] == "TransportError", answers["too-big"]
        assert "could not make its channels" in answers["too-big"]["message"]


def test_unlike_channels_name_the_rank(together: Answers) -> None:
    assert all("channels of rank 2 differ from those of rank 0" in a["unlike"]["message"] for a in together)


def test_a_closed_exchange_says_so_and_frees_its_memory(together: Answers) -> None:
    for answers in together:
        assert not answers["mapped"]
        assert answers["closed"]["error"] == "TransportError" and "open()" in answers["closed"]["message"]


def test_a_message_that_does_not_come_is_named_in_time(together: Answers) -> None:
    for rank, answers in enumerate(together[1:], start=1):
        late = answers["late"]
        assert late["error"] == "TransportError" and 0.4 < late["seconds"] < 2, late
        assert f"rank {rank} of {SIZE} waited 0.5 s for rank 0 to send on channel 'quiet'" in late["message"]


def test_a_rank_that_gives_up_ends_the_waits_of_others(together: Answers) -> None:
    for rank, answers in enumerate(together):
        assert answers["abort"]["error"] == "TransportError", answers["abort"]
        assert answers["abort"]["seconds"] < 1, f"rank {rank} waited on"


def test_a_rank_that_drops_its_exchange_keeps_nobody_waiting(together: Answers) -> None:
    for answers in together[1:]:
        assert answers["dropped"]["error"] == "TransportError" and answers["dropped"]["seconds"] < 1


def test_a_killed_rank_is_reported_at_once(transport: str, tmp_path: Path) -> None:
    before = segments()
    (_, *survivors), ends = spawn(lose_a_rank, transport, tmp_path)
    assert ends == [-9, 0, 0]
    for rank, answer in enumerate(survivors, start=1):
        assert answer["error"] == "TransportError" and answer["seconds"] < 1, answer
        assert f"rank {rank} of {SIZE}" in answer["message"] and "rank 0" in answer["message"]
    assert segments() <= before, "shared memory is left behind"


def test_every_job_was_done(together: Answers) -> None:
    assert all(JOBS.keys() | REFUSED.keys() <= answers.keys() for answers in together)
