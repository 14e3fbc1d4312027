"""Measure a pipeline: what a round costs by its size, what a sequential step costs, how its errors shrink.

Everything is measured on the real thing: the pipeline's own loop, guidance and scheduler included. A
measurement starts a normal call and ends it from inside as soon as enough rounds have been seen.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from parasample.bridge.auto import travel
from parasample.bridge.pipeline import Handle, parallelize
from parasample.bridge.run import PipelineRun
from parasample.config import Picard
from parasample.plan.cost import CostCurve
from parasample.plan.rounds import Pilot, Profile, calibrated, fit_profile
from parasample.plan.table import AffineTable

Call = Callable[[], object]
"""Makes one call of the pipeline that is measured, always with the same arguments and seed."""

# A round is timed this often after one that warms up; the median of three survives one disturbance.
REPEATS = 3


class _EnoughError(Exception):
    """Ends a call of the pipeline from inside."""


def measure_rounds(
    pipe: Any, call: Call, sizes: Sequence[int], on_size: Callable[[], None] | None = None
) -> CostCurve:
    """Seconds of a round by the number of states of one sample in it, at the given sizes.

    With tolerance 0 every round evaluates its whole window, so a run with window n times rounds of n states.
    """
    samples: list[tuple[int, float]] = []
    for size in sizes:
        method = Picard(window=size, tolerance=0.0)
        with parallelize(pipe, method) as handle:
            _call_until(handle, call, rounds=REPEATS + 2)
            timed = [r for r in handle.stats.history[2:] if r.evaluations == size * handle.stats.batch]
        samples += [(size, record.seconds) for record in timed or handle.stats.history[-1:]]
        if on_size is not None:
            on_size()
    return CostCurve.from_samples(samples)


def _call_until(handle: Handle, call: Call, rounds: int) -> None:
    """Make the call and end it after `rounds` rounds."""

    def count() -> None:
        if handle.stats.rounds >= rounds:
            raise _EnoughError

    with suppress(_EnoughError), _after_steps(handle.pipe.scheduler, count):
        call()


@contextmanager
def _after_steps(scheduler: Any, action: Callable[[], None]) -> Iterator[None]:
    """Run `action` after every step of schedulers of this class: pipelines and handles copy the instance."""
    owner = type(scheduler)
    had_own, step = "step" in vars(owner), owner.step

    @functools.wraps(step)
    def stepped(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        action()
        return result

    owner.step = stepped
    try:
        yield
    finally:
        if had_own:
            owner.step = step
        else:
            del owner.step


def measure_sequential_step(pipe: Any, call: Call, steps: int = 32) -> float:
    """Seconds of one step of the unchanged pipeline: the mean gap between its calls of `scheduler.step`."""
    marks: list[float] = []

    def mark() -> None:
        _synchronise()
        marks.append(time.perf_counter())
        if len(marks) > steps:
            raise _EnoughError

    with suppress(_EnoughError), _after_steps(pipe.scheduler, mark):
        call()
    if len(marks) < 2:
        raise ValueError(f"the call made {len(marks)} steps; it needs at least 2 to be timed")
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def record_pilot(pipe: Any, call: Call, window: int, tolerance: float) -> tuple[Pilot, AffineTable, float]:
    """One whole recorded run (its first sample), its table, and its seconds outside of rounds.

    What is outside of rounds is there in every call: prompts, set-up, steps that need no evaluation.
    """
    method = Picard(window=window, tolerance=tolerance, record=True)
    with parallelize(pipe, method) as handle:
        began_at = time.perf_counter()
        call()
        stats = handle.stats
        outside = time.perf_counter() - began_at - sum(record.seconds for record in stats.history)
        run = handle.run
        assert isinstance(run, PipelineRun) and run.solver is not None
        solver = run.solver
        states = torch.stack([record.states for record in stats.history if record.states is not None])[
            :, :, 0
        ]
        residuals = torch.stack([r.residuals for r in stats.history if r.residuals is not None])[:, :, 0]
    table = solver.table
    alpha = torch.tensor(table.alpha).clamp(min=1e-3)  # [T + 1]
    errors = (states - states[-1]).float().square().mean(dim=-1).sqrt() / alpha
    distances = _rows(travel(solver))
    pilot = Pilot(
        window, tolerance, stats.evaluations / stats.batch, _rows(errors), _rows(residuals), distances
    )
    return pilot, table, outside


def _rows(tensor: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in tensor.cpu().tolist())


def measure_profile(pipe: Any, call: Call, window: int, tolerance: float) -> tuple[Profile, float]:
    """A profile of the pipeline's errors for `plan.rounds.simulate`, and a call's seconds outside rounds.

    It is scaled such that the simulated pilot takes as many rounds and evaluations as the pilot itself did.
    """
    pilot, table, outside = record_pilot(pipe, call, window, tolerance)
    profile = fit_profile(pilot, table, Picard().prior_variance)
    return calibrated(profile, pilot), outside
