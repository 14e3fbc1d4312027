"""When who works on what: the ranks and workers of a denoiser cut into components, step by step.

Components 0..N-1 of a split run on ranks 0..N-1; component N-1 holds the output. With stride S, S - 1 more
ranks run the last stage of component N-1, too (arXiv 2406.06911, section 3.3): after the warm-up, steps come
in batches of S, every rank runs its component once a batch, and copy k, on rank N-1+k, gives the output of
the batch's step k. What a component reads of another was produced in an earlier batch, so that all ranks
compute at the same time.

There are two rules for what a component works on (`Reading`):

- "stale", as published: everybody works on the latents at hand and reads what the others made of the latents
  one batch before.
- "ahead": components are cut into stages that only read earlier ones (see `stages`). A stage that is k hops
  away from the output works on the latents that are predicted for the step in which the last stage will
  finish them, k batches later. Nothing it reads is stale; the latents are a prediction.

Who runs a stage is a worker: 0..V-1 run the stages, and the workers after them the copies of the last one.
With "stale" there is one on each rank; with "ahead" and a nested split a rank has several, which take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from parasample.errors import ConfigError
from parasample.plan.blocks import BlockGraph
from parasample.plan.partition import Split
from parasample.plan.partition.stages import Stages, stages, whole_components

Reading = Literal["stale", "ahead"]
READINGS: tuple[Reading, ...] = ("stale", "ahead")


@dataclass(frozen=True)
class Timetable:
    """Who works on which step of a run when.

    Args:
        graph, split: the denoiser and its components.
        num_steps: T, at least 1.
        stride: S, steps that a batch finishes, at least 1.
        warm_up: steps before the first batch, 1 to T. In these every rank runs the whole denoiser, or, with
            `sharded`, its own component, waiting for what the others make of the same latents.
        reading: what components work on, see above.
        sharded: no rank can run foreign blocks.

    Raises:
        ConfigError: for numbers out of range.
    """

    graph: BlockGraph
    split: Split
    num_steps: int
    stride: int = 1
    warm_up: int = 1
    reading: Reading = "stale"
    sharded: bool = False

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ConfigError(f"stride={self.stride} is below 1; pass the steps that a batch finishes")
        if not 1 <= self.warm_up <= self.num_steps:
            raise ConfigError(
                f"warm_up={self.warm_up} is outside 1..{self.num_steps}, the steps of the run; pass one "
                f"of them"
            )
        if self.reading not in READINGS:
            raise ConfigError(f"reading={self.reading!r} is unknown; choose one of {', '.join(READINGS)}")

    # ------------------------------------------------------------------ ranks, workers and their stages

    @property
    def num_ranks(self) -> int:
        """N + S - 1, one device each."""
        return self.split.components + self.stride - 1

    @cached_property
    def stages(self) -> Stages:
        """What workers run."""
        return stages(self.graph, self.split) if self.reading == "ahead" else whole_components(self.split)

    @property
    def num_workers(self) -> int:
        """V + S - 1."""
        return self.stages.count + self.stride - 1

    @cached_property
    def rank_of(self) -> tuple[int, ...]:
        """[workers] where each of them works."""
        copies = range(self.split.components, self.num_ranks)
        return (*self.stages.component, *copies)

    def workers_on(self, rank: int) -> tuple[int, ...]:
        """The workers of a rank, ascending; the last of them takes the denoiser's output."""
        return tuple(worker for worker, at in enumerate(self.rank_of) if at == rank)

    @property
    def output(self) -> int:
        """The block that is the denoiser's output."""
        return len(self.graph.blocks) - 1

    @property
    def horizon(self) -> int:
        """How many batches before its output a denoiser's run begins, at most."""
        return self.stages.phase[-1] if self.reading == "ahead" else 0

    def stage(self, worker: int) -> int:
        """The stage that a worker runs."""
        return min(worker, self.stages.count - 1)

    def copy(self, worker: int) -> int:
        """Which step of a batch a worker finishes: 0 for all but the further copies of the last stage."""
        return max(worker - (self.stages.count - 1), 0)

    def sender(self, stage: int) -> int:
        """The worker whose outputs of this stage the others read: the copy that is furthest ahead."""
        return stage if stage < self.stages.count - 1 else self.num_workers - 1

    def forwards(self, workers: Sequence[int], step: int) -> tuple[tuple[int, ...], ...]:
        """The forwards that these workers of one process make in a step, in order: who takes part in each.

        Workers that run the whole denoiser share a forward. What others wait for comes first: the output,
        or, where workers wait for each other within the step, what is read first.
        """
        whole = tuple(worker for worker in workers if self.whole(worker, step))
        parts = sorted((w for w in workers if w not in whole), reverse=not self.sharded)
        return ((whole,) if whole else ()) + tuple((worker,) for worker in parts)

    # ------------------------------------------------------------------ steps

    @property
    def batches(self) -> int:
        """Batches after the warm-up."""
        return -(-(self.num_steps - self.warm_up) // self.stride)

    def batch(self, step: int) -> int:
        """The batch a step is in: 0 for the first after the warm-up, negative before."""
        return (step - self.warm_up) // self.stride

    def first_batch(self, stage: int) -> int:
        """The first batch in which a stage works on its own.

        With "ahead" what stage 0 makes is finished `horizon` batches later, so that it leaves the warm-up
        that much earlier, though not before one step has shown where the latents go; the others follow it.
        """
        if self.reading == "stale" or self.sharded:
            return 0
        first = -min(self.horizon, (self.warm_up - 1) // self.stride)
        return min(first + self.stages.phase[stage], 0)

    def start(self, stage: int) -> int:
        """The first step of `first_batch`."""
        return self.warm_up + self.first_batch(stage) * self.stride

    def together(self, worker: int, step: int) -> bool:
        """Whether the step belongs to the warm-up of this worker."""
        return step < self.start(self.stage(worker))

    def whole(self, worker: int, step: int) -> bool:
        """Whether the worker runs the whole denoiser in this step."""
        return self.together(worker, step) and not self.sharded

    def head(self, worker: int, step: int) -> int:
        """First step of the batch that `step` is in; a step of the warm-up is a batch of its own."""
        return step if self.together(worker, step) else self.warm_up + self.batch(step) * self.stride

    def output_step(self, step: int) -> tuple[int, int]:
        """The worker that gives the output of `step`, and the step in which it makes it."""
        first = self.stages.count - 1
        if step < self.warm_up:
            return first, step
        head = self.head(first, step)
        return first + step - head, head

    def target(self, worker: int, step: int) -> int:
        """The step whose timestep a worker's denoiser is called with; with "ahead" whose latents, too."""
        if self.together(worker, step):
            return step
        stage = self.stage(worker)
        last = stage == self.stages.count - 1
        batches = self.horizon - self.stages.phase[stage] if self.reading == "ahead" else 0
        offset = self.copy(worker) if last else batches * self.stride + self.stride - 1
        return min(self.head(worker, step) + offset, self.num_steps - 1)

    def latents_step(self, worker: int, step: int) -> int:
        """The step whose latents a worker's denoiser is called with.

        It is also where on the axis of steps the values lie that the worker makes in `step`.
        """
        return self.target(worker, step) if self.reading == "ahead" else self.head(worker, step)

    def wanted(self, worker: int, step: int) -> int:
        """Where on the axis of steps a worker wants the values that it reads in `step`."""
        if self.reading == "ahead" or self.together(worker, step):
            return self.latents_step(worker, step)
        return step + self.copy(worker)
