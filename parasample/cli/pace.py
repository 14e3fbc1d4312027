"""What the demo samples, and on how many threads, so that it ends in about two minutes on any machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from parasample.cli.sampling import Case

# Seconds that more than two prompts may take, without the trajectory and the pictures.
PROMPTS_S = 80.0
# Seconds that the whole demo may take before the sampler with the most steps is given fewer.
MOST_S = 110.0
# Fewer are no longer a long run, which is what that sampler is there to show.
FEWEST_STEPS = 100


@contextmanager
def faster_threads(call: Callable[[], object]) -> Iterator[None]:
    """Inside, torch has one CPU thread if `call` is faster so, else all that it had before.

    Threads that share busy cores with other programs wait for each other at every parallel loop, which can
    make small models ten times slower.
    """
    before = torch.get_num_threads()
    try:
        if before > 1:
            torch.set_num_threads(1)
            call()  # the first call of a process is slow
            alone = _seconds(call)
            torch.set_num_threads(before)
            if _seconds(call) > alone:
                torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(call: Callable[[], object]) -> float:
    began_at = time.perf_counter()
    call()
    return time.perf_counter() - began_at


@dataclass(frozen=True)
class Programme:
    """What is sampled; `note` says what was left out and why, "" if nothing was."""

    prompts: list[str]
    cases: list[Case]
    trajectory: Case
    note: str = ""

    def seconds(self, step_s: float) -> float:
        """How long it takes where a step takes `step_s` seconds.

        Sampling in parallel takes about as long as sequentially where a device charges by the state, and the
        recorded trajectory about as long as twice its steps.
        """
        return (
            2 * step_s * (len(self.prompts) * sum(case.steps for case in self.cases) + self.trajectory.steps)
        )


def fit(asked: Programme, step_s: float, prompts_given: bool, spent_s: float) -> Programme:
    """As much of the programme as fits: fewer prompts unless they were given, then fewer steps.

    `spent_s` seconds went by before it, and the pictures after it will take about as long.
    """
    if not prompts_given:
        each = 2 * step_s * sum(case.steps for case in asked.cases)
        asked = replace(asked, prompts=asked.prompts[: max(int(PROMPTS_S / each), 2)])
    while (excess := asked.seconds(step_s) + 2 * spent_s - MOST_S) > 0:
        if prompts_given or len(asked.prompts) == 1:
            return _shorter(asked, step_s, excess)
        asked = replace(asked, prompts=asked.prompts[:-1])
    return asked


def _shorter(asked: Programme, step_s: float, excess: float) -> Programme:
    """The programme with fewer steps, so that it takes `excess` seconds less if it can."""
    longest = max(asked.cases, key=lambda case: case.steps)
    steps = int(longest.steps - excess / (2 * step_s * len(asked.prompts))) // 50 * 50
    if steps >= FEWEST_STEPS:
        cases = [case.for_steps(steps) if case is longest else case for case in asked.cases]
        fewer = f"{longest.sampler.upper()} took {steps} steps instead of {longest.steps}"
    else:
        cases = [case.for_steps(max(case.steps // 10, 10)) for case in asked.cases]
        fewer = "every sampler took a tenth of its steps"
    trajectory = asked.trajectory if steps >= FEWEST_STEPS else asked.trajectory.for_steps(20)
    note = f"To end in about two minutes, {fewer}: a step takes {step_s:.2g} s on this machine now."
    return replace(asked, cases=cases, trajectory=trajectory, note=note)


__all__ = ["Programme", "faster_threads", "fit"]
