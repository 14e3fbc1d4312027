"""Who does what when: a run of a denoiser cut into components, as lists of actions per worker and step.

See `parasample.plan.timetable` for the ranks, their workers and the steps these work on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from parasample.errors import ConfigError
from parasample.plan.partition import computed_blocks
from parasample.plan.timetable import Timetable

Kind = Literal["compute", "send", "receive", "reuse"]


@dataclass(frozen=True)
class Action:
    """One thing that one worker does for one block in one step.

    Attributes:
        kind: "compute" runs the block; "send" starts sending its output; "receive" waits for the output that
            another worker sent; "reuse" takes the output that this one computed or received before.
        block: index into the graph.
        produced: the step in which the value is, or was, computed.
        peers: of a send the workers that read it, of a receive the one that sends it.
    """

    kind: Kind
    block: int
    produced: int
    peers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Wire:
    """A block's way from the worker that sends its output to the workers that read it."""

    block: int
    source: int
    readers: tuple[int, ...]


@dataclass(frozen=True)
class Schedule(Timetable):
    """The actions of every worker in every step; arguments and errors are those of `Timetable`."""

    _cache: dict[tuple[int, int], tuple[Action, ...]] = field(default_factory=dict, compare=False, repr=False)

    # ------------------------------------------------------------------ data flow

    @cached_property
    def own(self) -> tuple[frozenset[int], ...]:
        """[V] the blocks that each stage computes: its share, and what everybody computes if it reads it."""
        stages = range(self.stages.count)
        return tuple(computed_blocks(self.graph, self.stages.split, stage) for stage in stages)

    @cached_property
    def reads(self) -> tuple[tuple[int, ...], ...]:
        """[V] the blocks of other stages that each stage's own blocks read, ascending."""
        found = []
        for own in self.own:
            sources = {source for index in own for source in self.graph.blocks[index].inputs}
            found.append(tuple(sorted(sources - own)))
        return tuple(found)

    def owner(self, block: int) -> int:
        """The stage that computes a block for others."""
        return self.stages.split.owners[block][0]

    def lag(self, reader: int, block: int) -> int:
        """How many batches old the value of `block` is that stage `reader` reads."""
        phase = self.stages.phase
        return phase[reader] - phase[self.owner(block)] if self.reading == "ahead" else 1

    @cached_property
    def _idle_at_the_end(self) -> tuple[int, ...]:
        """[V] the number of last batches in which nobody reads what a stage makes."""
        count = self.stages.count
        idle = [0 if stage == count - 1 else self.num_steps for stage in range(count)]
        for _ in range(count):
            for stage in range(count):
                for block in self.reads[stage]:
                    owner = self.owner(block)
                    idle[owner] = min(idle[owner], idle[stage] + self.lag(stage, block))
        return tuple(idle)

    def _alive(self, stage: int, batch: int) -> bool:
        """Whether anybody reads what a stage makes in a batch."""
        return batch < self.batches - self._idle_at_the_end[stage]

    # ------------------------------------------------------------------ actions

    def actions(self, worker: int, step: int) -> tuple[Action, ...]:
        """What a worker does in a step, in order."""
        key = (worker, step)
        if key not in self._cache:
            self._cache[key] = tuple(self._actions(worker, step))
        return self._cache[key]

    def _actions(self, worker: int, step: int) -> list[Action]:
        if not 0 <= worker < self.num_workers or not 0 <= step < self.num_steps:
            raise ConfigError(
                f"worker {worker}, step {step} is outside of {self.num_workers} workers and "
                f"{self.num_steps} steps"
            )
        if step != self.head(worker, step):
            return self._output(worker, step)
        if self.whole(worker, step):
            every = range(len(self.graph.blocks))
            return [*(Action("compute", index, step) for index in every), *self._output(worker, step)]
        return [*self._own_blocks(worker, step), *self._output(worker, step)]

    def _own_blocks(self, worker: int, step: int) -> list[Action]:
        """A stage's own blocks, and what they read."""
        stage, together = self.stage(worker), self.together(worker, step)
        if not together and not (self._alive(stage, self.batch(step)) and self._finishes(worker, step)):
            return []
        actions = []
        for index in range(len(self.graph.blocks)):
            if index in self.own[stage]:
                actions.append(Action("compute", index, step))
                readers = self._readers(index, step) if worker == self._source(index, together) else ()
                if readers:
                    actions.append(Action("send", index, step, readers))
            elif index in self.reads[stage]:
                actions.append(self._read(stage, index, step, together))
        return actions

    def _finishes(self, worker: int, head: int) -> bool:
        """Whether the batch has a step for this copy: the end of the run may have cut it short."""
        return head + self.copy(worker) < self.num_steps

    def _source(self, block: int, together: bool) -> int:
        """The worker whose output of `block` the others read."""
        stage = self.owner(block)
        return stage if together else self.sender(stage)

    def _read(self, stage: int, block: int, step: int, together: bool) -> Action:
        if together:  # only when sharded: what the owner makes in the same step
            return Action("receive", block, step, (self._source(block, True),))
        batch = self.batch(step) - self.lag(stage, block)
        if batch < self.first_batch(self.owner(block)):  # none of that age: the warm-up's last value
            return Action("reuse", block, self.start(stage) - 1)
        return Action("receive", block, self.warm_up + batch * self.stride, (self._source(block, False),))

    def _readers(self, block: int, step: int) -> tuple[int, ...]:
        """The workers that read what is made of a block in `step`; `_output` sends the output."""
        owner, found = self.owner(block), []
        for worker in range(self.num_workers):
            stage = self.stage(worker)
            if block not in self.reads[stage] or block == self.output:
                continue
            if self.together(owner, step):
                found.append(worker)
                continue
            batch = self.batch(step) + self.lag(stage, block)
            head = self.warm_up + batch * self.stride
            soon = self.first_batch(stage) <= batch < self.batches
            if soon and self._alive(stage, batch) and self._finishes(worker, head):
                found.append(worker)
        return tuple(found)

    @cached_property
    def _takers(self) -> tuple[int, ...]:
        """The worker of each rank that takes the output."""
        return tuple(self.workers_on(rank)[-1] for rank in range(self.num_ranks))

    def takes_output(self, worker: int) -> bool:
        """Whether the worker is the one of its rank that takes the denoiser's output."""
        return worker in self._takers

    def _output(self, worker: int, step: int) -> list[Action]:
        """The output: sent to every other rank as soon as it is made, taken in the step that it is for.

        That of the first step everybody has made: connections are there from the second step on.
        """
        if worker not in self._takers or (step == 0 and not self.sharded):
            return []
        actions: list[Action] = []
        others = self.output_wire(worker).readers
        for made_for in range(step, min(step + self.stride, self.num_steps)):
            if self.output_step(made_for) == (worker, step) and others:
                actions.append(Action("send", self.output, step, others))
        source, produced = self.output_step(step)
        if worker != source:
            actions.append(Action("receive", self.output, produced, (source,)))
        elif step != produced:
            actions.append(Action("reuse", self.output, produced))
        return actions

    # ------------------------------------------------------------------ wires

    def wire(self, block: int, produced: int) -> Wire:
        """The way that a block's output of step `produced` takes; the end of a run may need fewer readers."""
        if block == self.output:
            raise ValueError("the output has a wire for each copy; see `output_wire`")
        source = self._source(block, self.together(self.owner(block), produced))
        return Wire(block, source, self._readers(block, produced))

    def output_wire(self, source: int) -> Wire:
        """The way of the output that worker `source` makes."""
        return Wire(self.output, source, tuple(taker for taker in self._takers if taker != source))

    @cached_property
    def wires(self) -> tuple[Wire, ...]:
        """Every way that a block's output takes during the run, each once, in a fixed order."""
        found: set[Wire] = set()
        for step in range(self.num_steps):
            for worker in range(self.num_workers):
                sends = (action for action in self.actions(worker, step) if action.kind == "send")
                found |= {Wire(action.block, worker, action.peers) for action in sends}
        return tuple(sorted(found, key=lambda wire: (wire.block, wire.source, wire.readers)))

    def ranks_reached(self, wire: Wire) -> tuple[int, ...]:
        """The other ranks that something sent this way travels to, once each, ascending."""
        home = self.rank_of[wire.source]
        return tuple(sorted({self.rank_of[reader] for reader in wire.readers} - {home}))

    def age(self, wire: Wire) -> int:
        """How many batches after it was sent a message of this wire is read, at most."""
        if wire.block == self.output:
            return 1
        return max(self.lag(self.stage(reader), wire.block) for reader in wire.readers)
