"""Run a schedule on a clock without any device: does it finish, is everything read, how long does it take?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from parasample.errors import ConfigError
from parasample.plan.schedule import Action, Schedule


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
        bytes_sent: [ranks][steps] payload times readers.
        oldest: the oldest value read of another rank, in batches; 0 is the same step's.
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
        self.todo = [
            (step, action) for step in range(schedule.num_steps) for action in _with_end(schedule, rank, step)
        ]
        self.next = 0
        self.now = 0.0
        self.lane: list[Interval] = []

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


def _with_end(schedule: Schedule, rank: int, step: int) -> list[Action | None]:
    return [*schedule.actions(rank, step), None]  # None: the end of the step


def simulate(schedule: Schedule, costs: Costs) -> Timeline:
    """Run every rank's actions, each in its order, and messages between them.

    Raises:
        ConfigError: when ranks wait for each other for ever, a value is reused that was never there, or a
            message is never read: a schedule that must not be run.
    """
    ranks = [_Rank(schedule, rank) for rank in range(schedule.num_ranks)]
    timeline = Timeline([rank.lane for rank in ranks])
    timeline.bytes_sent = [[0] * schedule.num_steps for _ in ranks]
    # (block, produced, source, reader) -> there at; and what each rank has had of each block.
    mail: dict[tuple[int, int, int, int], float] = {}
    had: list[set[tuple[int, int]]] = [set() for _ in ranks]
    while not all(rank.done for rank in ranks):
        moved = False
        for number, rank in enumerate(ranks):
            while not rank.done and _advance(schedule, costs, timeline, number, rank, mail, had[number]):
                moved = True
        if not moved:
            stuck = next(number for number, rank in enumerate(ranks) if not rank.done)
            step, action = ranks[stuck].todo[ranks[stuck].next]
            raise ConfigError(f"the schedule never ends: rank {stuck} waits in step {step} for {action}")
    if mail:
        block, produced, source, reader = next(iter(mail))
        raise ConfigError(
            f"rank {source} sends block {block} of step {produced} to rank {reader}, which never reads it"
        )
    return timeline


def _advance(
    schedule: Schedule,
    costs: Costs,
    timeline: Timeline,
    number: int,
    rank: _Rank,
    mail: dict[tuple[int, int, int, int], float],
    had: set[tuple[int, int]],
) -> bool:
    """Do the rank's next action; False when it must wait for a message that was not sent yet."""
    step, action = rank.todo[rank.next]
    if action is None:
        rank.spend("step", step, rank.now + costs.step)
    elif action.kind == "compute":
        rank.spend("compute", step, rank.now + costs.blocks[action.block])
        had.add((action.block, step))
    elif action.kind == "send":
        _send(schedule, costs, timeline, number, rank, step, action, mail)
    elif action.kind == "receive":
        key = (action.block, action.produced, action.peers[0], number)
        if key not in mail:
            return False
        rank.spend("wait", step, mail.pop(key))
        had.add((action.block, action.produced))
        if action.block != schedule.output:
            timeline.oldest = max(timeline.oldest, schedule.batch(step) - schedule.batch(action.produced))
    elif (action.block, action.produced) not in had:
        raise ConfigError(
            f"rank {number} reuses block {action.block} of step {action.produced}, which it never had"
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
    action: Action,
    mail: dict[tuple[int, int, int, int], float],
) -> None:
    size = schedule.graph.blocks[action.block].output_bytes
    rank.spend("compute", step, rank.now + size / costs.copy_bytes_per_second)
    for reader in action.peers:
        arrival = rank.now + costs.latency + size / costs.bytes_per_second
        mail[action.block, step, number, reader] = arrival
        timeline.messages.append((action.block, number, reader, step, rank.now, arrival))
    timeline.bytes_sent[number][step] += size * len(action.peers)


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
