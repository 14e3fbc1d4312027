"""Run a schedule on a clock without any device: does it finish, is everything read, how long does it take?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from parasample.errors import ConfigError
from parasample.plan.schedule import Action, Schedule, Wire


@dataclass(frozen=True)
class Costs:
    """What things take, in seconds.

    Attributes:
        blocks: [n] one run of each block of the graph.
        step: what every rank does once a step besides blocks and exchange: glue, guidance, the scheduler.
        latency, bytes_per_second: of a message from one rank to another; infinitely fast by default.
        copy_bytes_per_second: at which a sender copies a message out of the way before it goes on; the
            devices of a GPU transport do that on their own (infinite).
    """

    blocks: Sequence[float]
    step: float = 0.0
    latency: float = 0.0
    bytes_per_second: float = math.inf
    copy_bytes_per_second: float = math.inf


@dataclass(frozen=True)
class Interval:
    """What a rank did from `begin` to `end`, in seconds since the start: "compute", "wait" or "step"."""

    kind: str
    step: int
    begin: float
    end: float


@dataclass
class Timeline:
    """A simulated run.

    Attributes:
        lanes: [ranks] what each rank did, in order.
        messages: (block, source, reader, step of sending, sent at, there at) of each message.
        bytes_sent: [ranks][steps] payload times the ranks that it goes to.
        oldest: the oldest value read of another worker, in batches; 0 is the same step's.
    """

    lanes: list[list[Interval]]
    messages: list[tuple[int, int, int, int, float, float]] = field(default_factory=list)
    bytes_sent: list[list[int]] = field(default_factory=list)
    oldest: int = 0

    @property
    def seconds(self) -> float:
        """When the last rank is done."""
        return max((lane[-1].end for lane in self.lanes if lane), default=0.0)


class _Rank:
    """A rank on its way through the schedule."""

    def __init__(self, schedule: Schedule, rank: int) -> None:
        # What is to be done: in which step, by which workers, and None at the end of the step.
        self.todo: list[tuple[int, tuple[int, ...], Action | None]] = []
        for step in range(schedule.num_steps):
            self.todo += _step(schedule, schedule.workers_on(rank), step)
        self.next = 0
        self.now = 0.0
        self.lane: list[Interval] = []
        # What each worker has had of each block: (worker, block, step it was made in).
        self.had: set[tuple[int, int, int]] = set()

    @property
    def done(self) -> bool:
        return self.next == len(self.todo)

    def spend(self, kind: str, step: int, until: float) -> None:
        if until <= self.now:
            return
        last = self.lane[-1] if self.lane else None
        if last and last.kind == kind and last.step == step and last.end == self.now:
            self.lane[-1] = Interval(kind, step, last.begin, until)
        else:
            self.lane.append(Interval(kind, step, self.now, until))
        self.now = until


def _step(
    schedule: Schedule, workers: Sequence[int], step: int
) -> list[tuple[int, tuple[int, ...], Action | None]]:
    """A rank's part of a step: forward after forward, then it takes the output."""
    found: list[tuple[int, tuple[int, ...], Action | None]] = []
    at_the_end: list[tuple[int, tuple[int, ...], Action | None]] = []
    for group in schedule.forwards(workers, step):
        for worker in group:
            for action in schedule.actions(worker, step):
                if action.kind == "compute" and worker == group[0]:
                    found.append((step, group, action))  # once for all who take part
                elif action.block == schedule.output and action.kind in ("receive", "reuse"):
                    at_the_end.append((step, (worker,), action))
                elif action.kind != "compute":
                    found.append((step, (worker,), action))
    return [*found, *at_the_end, (step, (), None)]


def simulate(schedule: Schedule, costs: Costs) -> Timeline:
    """Run every rank's actions, each in its order, and messages between them.

    Raises:
        ConfigError: when ranks wait for each other for ever, a value is reused that was never there, or a
            message is never read: a schedule that must not be run.
    """
    ranks = [_Rank(schedule, rank) for rank in range(schedule.num_ranks)]
    timeline = Timeline([rank.lane for rank in ranks])
    timeline.bytes_sent = [[0] * schedule.num_steps for _ in ranks]
    mail: _Mail = {}
    while not all(rank.done for rank in ranks):
        moved = False
        for number, rank in enumerate(ranks):
            while not rank.done and _advance(schedule, costs, timeline, number, rank, mail):
                moved = True
        if not moved:
            stuck = next(number for number, rank in enumerate(ranks) if not rank.done)
            step, _, action = ranks[stuck].todo[ranks[stuck].next]
            raise ConfigError(f"the schedule never ends: rank {stuck} waits in step {step} for {action}")
    if mail:
        block, produced, source, reader = next(iter(mail))
        raise ConfigError(
            f"worker {source} sends block {block} of step {produced} to worker {reader}, which never reads it"
        )
    return timeline


_Mail = dict[tuple[int, int, int, int], float]  # (block, produced, source, reader) -> there at


def _advance(
    schedule: Schedule, costs: Costs, timeline: Timeline, number: int, rank: _Rank, mail: _Mail
) -> bool:
    """Do the rank's next action; False when it must wait for a message that was not sent yet."""
    step, workers, action = rank.todo[rank.next]
    if action is None:
        rank.spend("step", step, rank.now + costs.step)
    elif action.kind == "compute":
        rank.spend("compute", step, rank.now + costs.blocks[action.block])
        rank.had |= {(worker, action.block, step) for worker in workers}
    elif action.kind == "send":
        _send(schedule, costs, timeline, number, rank, step, workers[0], action, mail)
    elif action.kind == "receive":
        key = (action.block, action.produced, action.peers[0], workers[0])
        if key not in mail:
            return False
        rank.spend("wait", step, mail.pop(key))
        rank.had.add((workers[0], action.block, action.produced))
        if action.block != schedule.output:
            timeline.oldest = max(timeline.oldest, schedule.batch(step) - schedule.batch(action.produced))
    elif (workers[0], action.block, action.produced) not in rank.had:
        raise ConfigError(
            f"worker {workers[0]} reuses block {action.block} of step {action.produced}, which it never had"
        )
    rank.next += 1
    return True


def _send(
    schedule: Schedule,
    costs: Costs,
    timeline: Timeline,
    number: int,
    rank: _Rank,
    step: int,
    worker: int,
    action: Action,
    mail: _Mail,
) -> None:
    size = schedule.graph.blocks[action.block].output_bytes
    reached = schedule.ranks_reached(Wire(action.block, worker, action.peers))
    if reached:
        rank.spend("compute", step, rank.now + size / costs.copy_bytes_per_second)
    arrival = rank.now + costs.latency + size / costs.bytes_per_second
    for reader in action.peers:
        at = schedule.rank_of[reader]
        mail[action.block, step, worker, reader] = arrival if at != number else rank.now
    for at in reached:
        timeline.messages.append((action.block, number, at, step, rank.now, arrival))
    timeline.bytes_sent[number][step] += size * len(reached)


def planned_bytes(schedule: Schedule) -> list[list[int]]:
    """[ranks][steps] bytes that each rank sends in each step, summed over the ranks that it sends them to."""
    return simulate(schedule, Costs([0.0] * len(schedule.graph.blocks))).bytes_sent


def sequential_seconds(schedule: Schedule, costs: Costs) -> float:
    """What one device takes for the same steps."""
    return schedule.num_steps * (sum(costs.blocks) + costs.step)


def predicted_speedup(schedule: Schedule, costs: Costs) -> float:
    """How many times as fast as one device the schedule is."""
    return sequential_seconds(schedule, costs) / simulate(schedule, costs).seconds


def critical_path(schedule: Schedule) -> float:
    """How many sequential steps take as long as the schedule by its graph's costs, exchange not counted."""
    costs = Costs([block.cost for block in schedule.graph.blocks])
    return simulate(schedule, costs).seconds / (schedule.graph.total_cost or 1.0)
