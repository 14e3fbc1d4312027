"""Who does what when: a denoiser cut into components, as lists of actions per rank and step.

Components 0..N-1 of a split run on ranks 0..N-1; component N-1 holds the output. With stride S, S - 1 more
ranks run component N-1, too (arXiv 2406.06911, section 3.3): after the warm-up, steps come in batches of S,
every rank runs its component once a batch, and copy k of the last component, on rank N-1+k, gives the output
of the batch's step k. What a component reads of another was produced in an earlier batch, so that all ranks
compute at the same time.

There are two rules for what a component works on (`Reading`):

- "stale", as published: everybody works on the latents at hand and reads what the others made of the latents
  one batch before.
- "ahead": component c works on the latents that are predicted for the step in which the last component will
  finish them, N-1-c batches later. Nothing it reads is stale; the latents are a prediction. Needs a split
  whose components only read earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from parasample.errors import ConfigError
from parasample.plan.blocks import BlockGraph
from parasample.plan.partition import Split

Kind = Literal["compute", "send", "receive", "reuse"]
Reading = Literal["stale", "ahead"]
READINGS: tuple[str, ...] = ("stale", "ahead")


@dataclass(frozen=True)
class Action:
    """One thing that one rank does for one block in one step.

    Attributes:
        kind: "compute" runs the block; "send" starts sending its output; "receive" waits for the output that
            another rank sent; "reuse" takes the output that this rank computed or received before.
        block: index into the graph.
        produced: the step in which the value is, or was, computed.
        peers: of a send the ranks that read it, of a receive the one that sends it.
    """

    kind: Kind
    block: int
    produced: int
    peers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Wire:
    """A block's way from the rank that sends its output to the ranks that read it."""

    block: int
    source: int
    readers: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """The actions of every rank in every step.

    Args:
        graph, split: the denoiser and its components.
        num_steps: T, at least 1.
        stride: S, steps that a batch finishes, at least 1.
        warm_up: steps before the first batch, 1 to T. In these every rank runs the whole denoiser, or, with
            `sharded`, its own component, waiting for what the others make of the same latents.
        reading: what components work on, see above.
        sharded: no rank can run foreign blocks.

    Raises:
        ConfigError: for numbers out of range, or "ahead" with a split whose components read later ones.
    """

    graph: BlockGraph
    split: Split
    num_steps: int
    stride: int = 1
    warm_up: int = 1
    reading: Reading = "stale"
    sharded: bool = False
    _cache: dict[tuple[int, int], tuple[Action, ...]] = field(default_factory=dict, compare=False, repr=False)

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
        if self.reading == "ahead" and not flows_forward(self.graph, self.split):
            raise ConfigError(
                "reading='ahead' needs components that only read earlier ones, and this split has a "
                "component "
                "that reads a later one; pass a contiguous split, or reading='stale'"
            )

    # ------------------------------------------------------------------ ranks and steps

    @property
    def components(self) -> int:
        """N."""
        return self.split.components

    @property
    def num_ranks(self) -> int:
        """N + S - 1, one device each."""
        return self.components + self.stride - 1

    @property
    def output(self) -> int:
        """The block that is the denoiser's output."""
        return len(self.graph.blocks) - 1

    def component(self, rank: int) -> int:
        """The component that a rank runs."""
        return min(rank, self.components - 1)

    def copy(self, rank: int) -> int:
        """Which step of a batch a rank finishes: 0 for all but the further copies of the last component."""
        return max(rank - (self.components - 1), 0)

    def sender(self, component: int) -> int:
        """The rank whose outputs of this component the others read: the copy that is furthest ahead."""
        return component if component < self.components - 1 else self.num_ranks - 1

    @property
    def batches(self) -> int:
        """Batches after the warm-up."""
        return -(-(self.num_steps - self.warm_up) // self.stride)

    def batch(self, step: int) -> int:
        """The batch a step is in: 0 for the first after the warm-up, negative before."""
        return (step - self.warm_up) // self.stride

    def first_batch(self, component: int) -> int:
        """The first batch in which a component works on its own.

        With "ahead" what component 0 makes is finished N-1 batches later, so that it leaves the warm-up that
        much earlier, though not before one step has shown where the latents go; the others follow it.
        """
        if self.reading == "stale" or self.sharded:
            return 0
        first = -min(self.components - 1, (self.warm_up - 1) // self.stride)
        return min(first + component, 0)

    def start(self, component: int) -> int:
        """The first step of `first_batch`."""
        return self.warm_up + self.first_batch(component) * self.stride

    def together(self, rank: int, step: int) -> bool:
        """Whether the step belongs to the warm-up of this rank."""
        return step < self.start(self.component(rank))

    def whole(self, rank: int, step: int) -> bool:
        """Whether the rank runs the whole denoiser in this step."""
        return self.together(rank, step) and not self.sharded

    def head(self, rank: int, step: int) -> int:
        """First step of the batch that `step` is in; a step of the warm-up is a batch of its own."""
        return step if self.together(rank, step) else self.warm_up + self.batch(step) * self.stride

    def output_step(self, step: int) -> tuple[int, int]:
        """The rank that gives the output of `step`, and the step in which it makes it."""
        first = self.components - 1
        if step < self.warm_up:
            return first, step
        head = self.head(first, step)
        return first + step - head, head

    def target(self, rank: int, step: int) -> int:
        """The step whose timestep a rank's denoiser is called with; with "ahead" whose latents, too."""
        if self.together(rank, step):
            return step
        component = self.component(rank)
        last = component == self.components - 1
        batches = 0 if self.reading == "stale" else self.components - 1 - component
        offset = self.copy(rank) if last else batches * self.stride + self.stride - 1
        return min(self.head(rank, step) + offset, self.num_steps - 1)

    def latents_step(self, rank: int, step: int) -> int:
        """The step whose latents a rank's denoiser is called with."""
        return self.target(rank, step) if self.reading == "ahead" else self.head(rank, step)

    def position(self, rank: int, produced: int) -> int:
        """Where on the axis of steps the values lie that a rank made in step `produced`."""
        return self.latents_step(rank, produced)

    def wanted(self, rank: int, step: int) -> int:
        """Where on the axis of steps a rank wants the values that it reads in `step`."""
        if self.reading == "ahead" or self.together(rank, step):
            return self.latents_step(rank, step)
        return step + self.copy(rank)

    # ------------------------------------------------------------------ data flow

    @cached_property
    def own(self) -> tuple[frozenset[int], ...]:
        """[N] the blocks that each component computes: its share, and what everybody computes if it reads
        it.
        """
        found = []
        for component in range(self.components):
            needed: set[int] = set()
            for index in reversed(range(len(self.graph.blocks))):
                everywhere = self.graph.blocks[index].everywhere
                mine = component in self.split.owners[index] and not everywhere
                read = everywhere and any(reader in needed for reader in self.graph.readers[index])
                if mine or read:
                    needed.add(index)
            found.append(frozenset(needed))
        return tuple(found)

    @cached_property
    def reads(self) -> tuple[tuple[int, ...], ...]:
        """[N] the foreign blocks that each component's own blocks read, ascending."""
        found = []
        for own in self.own:
            sources = {source for index in own for source in self.graph.blocks[index].inputs}
            found.append(tuple(sorted(sources - own)))
        return tuple(found)

    def lag(self, reader: int, block: int) -> int:
        """How many batches old the value of `block` is that component `reader` reads."""
        return reader - self.split.owners[block][0] if self.reading == "ahead" else 1

    @cached_property
    def _idle_at_the_end(self) -> tuple[int, ...]:
        """[N] the number of last batches in which nobody reads what a component makes."""
        last = self.components - 1
        idle = [0 if component == last else self.num_steps for component in range(self.components)]
        for _ in range(self.components):
            for component in range(self.components):
                for block in self.reads[component]:
                    owner = self.split.owners[block][0]
                    idle[owner] = min(idle[owner], idle[component] + self.lag(component, block))
        return tuple(idle)

    def _alive(self, component: int, batch: int) -> bool:
        """Whether anybody reads what a component makes in a batch."""
        return batch < self.batches - self._idle_at_the_end[component]

    # ------------------------------------------------------------------ actions

    def actions(self, rank: int, step: int) -> tuple[Action, ...]:
        """What a rank does in a step, in order."""
        key = (rank, step)
        if key not in self._cache:
            self._cache[key] = tuple(self._actions(rank, step))
        return self._cache[key]

    def _actions(self, rank: int, step: int) -> list[Action]:
        if not 0 <= rank < self.num_ranks or not 0 <= step < self.num_steps:
            raise ConfigError(
                f"rank {rank}, step {step} is outside of {self.num_ranks} ranks and {self.num_steps} steps"
            )
        if step != self.head(rank, step):
            return self._output(rank, step)
        if self.whole(rank, step):
            every = range(len(self.graph.blocks))
            return [*(Action("compute", index, step) for index in every), *self._output(rank, step)]
        return [*self._own_blocks(rank, step), *self._output(rank, step)]

    def _own_blocks(self, rank: int, step: int) -> list[Action]:
        """A component's own blocks, and what they read."""
        component, together = self.component(rank), self.together(rank, step)
        if not together and not (self._alive(component, self.batch(step)) and self._finishes(rank, step)):
            return []
        actions = []
        for index in range(len(self.graph.blocks)):
            if index in self.own[component]:
                actions.append(Action("compute", index, step))
                readers = self._readers(index, step) if rank == self._source(index, together) else ()
                if readers:
                    actions.append(Action("send", index, step, readers))
            elif index in self.reads[component]:
                actions.append(self._read(component, index, step, together))
        return actions

    def _finishes(self, rank: int, head: int) -> bool:
        """Whether the batch has a step for this copy: the end of the run may have cut it short."""
        return head + self.copy(rank) < self.num_steps

    def _source(self, block: int, together: bool) -> int:
        """The rank whose output of `block` the others read."""
        component = self.split.owners[block][0]
        return component if together else self.sender(component)

    def _read(self, component: int, block: int, step: int, together: bool) -> Action:
        if together:  # only when sharded: what the owner makes in the same step
            return Action("receive", block, step, (self._source(block, True),))
        batch = self.batch(step) - self.lag(component, block)
        if batch < self.first_batch(
            self.split.owners[block][0]
        ):  # none of that age: the warm-up's last value
            return Action("reuse", block, self.start(component) - 1)
        return Action("receive", block, self.warm_up + batch * self.stride, (self._source(block, False),))

    def _readers(self, block: int, step: int) -> tuple[int, ...]:
        """The ranks that read what is made of a block in `step`, but for the output, which `_output`
        sends.
        """
        owner, found = self.split.owners[block][0], []
        for rank in range(self.num_ranks):
            component = self.component(rank)
            if block not in self.reads[component] or block == self.output:
                continue
            if self.together(owner, step):
                found.append(rank)
                continue
            batch = self.batch(step) + self.lag(component, block)
            head = self.warm_up + batch * self.stride
            soon = self.first_batch(component) <= batch < self.batches
            if soon and self._alive(component, batch) and self._finishes(rank, head):
                found.append(rank)
        return tuple(found)

    def _output(self, rank: int, step: int) -> list[Action]:
        """The output: sent to everybody as soon as it is made, taken in the step that it is for.

        That of the first step everybody has made: connections are there from the second step on.
        """
        if step == 0 and not self.sharded:
            return []
        actions: list[Action] = []
        others = tuple(other for other in range(self.num_ranks) if other != rank)
        for made_for in range(step, min(step + self.stride, self.num_steps)):
            if self.output_step(made_for) == (rank, step) and others:
                actions.append(Action("send", self.output, step, others))
        source, produced = self.output_step(step)
        if rank != source:
            actions.append(Action("receive", self.output, produced, (source,)))
        elif step != produced:
            actions.append(Action("reuse", self.output, produced))
        return actions

    def wire(self, block: int, produced: int) -> Wire:
        """The way that a block's output of step `produced` takes; the end of a run may need fewer readers."""
        if block == self.output:
            raise ValueError("the output has a wire for each copy; see `output_wire`")
        source = self._source(block, self.together(self.split.owners[block][0], produced))
        return Wire(block, source, self._readers(block, produced))

    def output_wire(self, source: int) -> Wire:
        """The way of the output that rank `source` makes."""
        return Wire(self.output, source, tuple(rank for rank in range(self.num_ranks) if rank != source))

    @cached_property
    def wires(self) -> tuple[Wire, ...]:
        """Every way that a block's output takes during the run, each once, in a fixed order."""
        found: set[Wire] = set()
        for step in range(self.num_steps):
            for rank in range(self.num_ranks):
                sends = (action for action in self.actions(rank, step) if action.kind == "send")
                found |= {Wire(action.block, rank, action.peers) for action in sends}
        return tuple(sorted(found, key=lambda wire: (wire.block, wire.source, wire.readers)))


def flows_forward(graph: BlockGraph, split: Split) -> bool:
    """Whether every component only reads components before it."""
    for index, block in enumerate(graph.blocks):
        for component in split.owners[index]:
            for source in block.inputs:
                owners = split.owners[source]
                if component not in owners and owners[0] > component:
                    return False
    return True


def hops(graph: BlockGraph, split: Split) -> int:
    """How often the longest way through the denoiser goes from one component to another.

    Each hop makes what arrives one batch older, and its extrapolation less certain.
    """
    taken: list[int] = []
    for index, block in enumerate(graph.blocks):
        owners = set(split.owners[index])
        ways = [taken[source] + (not owners & set(split.owners[source])) for source in block.inputs]
        taken.append(max(ways, default=0))
    return taken[-1]
