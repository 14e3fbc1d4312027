"""Runs one worker's part of a split denoiser: its own blocks, and other workers' outputs in place of theirs.

The denoiser's own forward runs for every worker. A block of its own is computed, and its output sent on its
way at once if somebody reads it. A foreign block that an own one reads gives what its owner sent; any other
gives a placeholder that nobody looks at, and modules with nothing of interest inside are not entered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from parasample.errors import UnsupportedPipelineError
from parasample.plan.schedule import Action, Schedule, Wire
from parasample.runtime.templates import Templates, version
from parasample.runtime.transports.exchange import Channel
from parasample.runtime.transports.router import Endpoint


def make_channels(schedule: Schedule, templates: Templates) -> tuple[list[Channel], dict[Wire, list[int]]]:
    """A channel for each tensor that takes each wire, and their positions by wire."""
    channels: list[Channel] = []
    places: dict[Wire, list[int]] = {}
    for wire in schedule.wires:
        template, block = templates[wire.block], schedule.graph.blocks[wire.block]
        places[wire] = []
        for part, like in enumerate(template.parts_like):
            places[wire].append(len(channels))
            name = f"{block.label}[{part}]"
            keep = 1 + schedule.age(wire)  # the value that is read, and the one before it
            channels.append(Channel(name, wire.source, wire.readers, tuple(like.shape), like.dtype, keep))
    return channels, places


@dataclass
class _Value:
    """What a worker has of a foreign block: the tensors, and where they lie on the axis of steps."""

    position: int
    parts: list[Tensor]


class ComponentRunner:
    """One worker's part in one of the pipeline's calls of the denoiser, through all steps of a run.

    Args:
        worker: whose part.
        schedule: of the run.
        templates: of this call, filled by the first step.
        blend: extrapolate what is read linearly in the axis of steps from the last two values.
    """

    def __init__(self, worker: int, schedule: Schedule, templates: Templates, blend: bool = False) -> None:
        self.worker = worker
        self.schedule = schedule
        self.templates = templates
        self.blend = blend
        self.endpoint: Endpoint | None = None
        self._channels: dict[Wire, list[int]] = {}
        self._values: dict[int, deque[_Value]] = {}
        self._output: Any = None
        self._step = 0
        self._plan: dict[int, Action] = {}
        self._sends: dict[int, Action] = {}
        self._inside: dict[int, bool] = {}
        # Tensors that must not change in place, with their versions, and the blocks they are of.
        self._lent: list[tuple[int, Tensor, int]] = []

    @property
    def rank(self) -> int:
        """Where the worker works."""
        return self.schedule.rank_of[self.worker]

    def adopt(self, other: ComponentRunner) -> None:
        """Take over what another worker of this rank, which is not needed any more, has of other ranks."""
        for block, values in other._values.items():
            self._values.setdefault(block, values)

    def release(self) -> None:
        """Hold nothing that lies in the exchange's memory: its channels are about to be replaced."""
        self.settle()
        for values in self._values.values():
            for value in values:
                value.parts = [part.clone() for part in value.parts]

    def connect(self, endpoint: Endpoint, places: dict[Wire, list[int]]) -> None:
        """Use an exchange whose channels are open."""
        self.endpoint, self._channels = endpoint, places

    # ------------------------------------------------------------------ a step

    def begin(self, step: int) -> bool:
        """Whether this worker has anything to compute in a step, which has begun."""
        self.settle()
        self._step = step
        actions = self.schedule.actions(self.worker, step)
        self._sends = {action.block: action for action in actions if action.kind == "send"}
        self._plan = {
            action.block: action
            for action in actions
            if action.kind != "send" and (action.block != self.schedule.output or action.kind == "compute")
        }
        self._inside = {}
        return any(action.kind == "compute" for action in self._plan.values())

    def settle(self) -> None:
        """Nothing that was lent to the exchange in the last step was changed, or it was not what others
        read.
        """
        if self.endpoint is not None:
            self.endpoint.flush()
        for block, tensor, before in self._lent:
            if version(tensor) != before:
                raise UnsupportedPipelineError(
                    f"step {self._step}: the denoiser changes the output of block "
                    f"{self.schedule.graph.blocks[block].label} in place, so that it cannot be shared "
                    "between ranks; sample this pipeline sequentially, or choose another split"
                )
        self._lent.clear()

    def finish(self, output: Any) -> None:
        """The forward is over: nothing that others wait for was left out."""
        if self.schedule.output in self._plan:
            self._output = output
        missing = [block for block in self._sends if block != self.schedule.output]
        if missing:
            raise UnsupportedPipelineError(
                f"step {self._step}: block {self.schedule.graph.blocks[missing[0]].label} did not run, "
                "although it did in the first step; sample this pipeline sequentially"
            )

    def block(self, index: int, forward: Callable[[], Any]) -> Any:
        """The output of a block, by running it or without."""
        action = self._plan.get(index)
        if action is None:
            if self._something_inside(index):
                return forward()
            return self.templates[index].placeholder
        if action.kind == "compute":
            output = forward()
            if index in self._sends and index != self.schedule.output:
                self._send(self._sends.pop(index), output)
            return output
        template = self.templates[index]
        parts = self._read(action)
        base = forward() if self._something_inside(index) else template.placeholder
        return template.with_parts(base, parts)

    def _something_inside(self, index: int) -> bool:
        """Whether the block is a module with blocks inside that do something in this step."""
        if index not in self._inside:
            blocks = self.schedule.graph.blocks
            # Calls are told apart by counting them: where a module is called twice, none is left out.
            repeated = any(block.call for block in blocks)
            prefix = f"{blocks[index].name}." if blocks[index].name else ""
            at_work = (blocks[other].name for other in self._plan if other != index)
            inside = repeated or any(name.startswith(prefix) for name in at_work)
            self._inside[index] = blocks[index].exit and inside
        return self._inside[index]

    # ------------------------------------------------------------------ values of other ranks

    def remember(self, index: int, output: Any) -> None:
        """Keep what a forward of the whole denoiser made of a block that is read from somebody else later."""
        stage = self.schedule.stage(self.worker)
        soon = self._step >= self.schedule.start(stage) - 2
        first = self._step == 0  # the schedule may yet change
        if index in self.schedule.reads[stage] and (soon or first):
            parts = [part.clone() for part in self.templates[index].parts(output)]
            self._store(index, _Value(self._step, parts))

    def _store(self, index: int, value: _Value) -> None:
        self._values.setdefault(index, deque(maxlen=2)).append(value)

    def _read(self, action: Action) -> list[Tensor]:
        if action.kind == "receive":
            wire = self.schedule.wire(action.block, action.produced)
            parts = [self._receive(action.block, channel) for channel in self._channels[wire]]
            self._store(action.block, _Value(self.schedule.latents_step(wire.source, action.produced), parts))
        values = self._values[action.block]
        last = values[-1]
        weight = 0.0
        if self.blend and len(values) == 2 and last.position != values[0].position:
            wanted = self.schedule.wanted(self.worker, self._step)
            weight = (wanted - last.position) / (last.position - values[0].position)
        if weight == 0.0:
            return last.parts
        return [
            torch.lerp(before, after, 1.0 + weight) if after.is_floating_point() else after
            for before, after in zip(values[0].parts, last.parts, strict=True)
        ]

    def _receive(self, block: int, channel: int) -> Tensor:
        assert self.endpoint is not None
        tensor = self.endpoint.receive(channel)
        self._lend(block, tensor)
        return tensor

    def _send(self, action: Action, output: Any) -> None:
        assert self.endpoint is not None
        parts = self.templates[action.block].parts(output)
        wire = Wire(action.block, self.worker, action.peers)
        for channel, part in zip(self._channels[wire], parts, strict=True):
            self.endpoint.send(channel, part)
            self._lend(action.block, part)

    def _lend(self, block: int, tensor: Tensor) -> None:
        self._lent.append((block, tensor, version(tensor)))

    # ------------------------------------------------------------------ the denoiser's output

    def send_output(self) -> None:
        """Send the denoiser's output to every other rank, if this worker made it in this step."""
        action = self._sends.pop(self.schedule.output, None)
        if action is not None:
            output = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, self._output)
            self._send(action, output)

    def take_output(self, step: int) -> Any:
        """The denoiser's output for `step`, the same on every rank; None if another worker here takes it."""
        template = self.templates[self.schedule.output]
        for action in self.schedule.actions(self.worker, step):
            if action.kind == "receive" and action.block == self.schedule.output:
                assert self.endpoint is not None
                channels = self._channels[self.schedule.output_wire(action.peers[0])]
                parts = [self.endpoint.receive(channel).clone() for channel in channels]
                return template.with_parts(template.placeholder, parts)
        return self._output if self.schedule.takes_output(self.worker) else None


class WholeForward:
    """A forward of the whole denoiser, of which several workers keep what they will read."""

    def __init__(self, runners: Sequence[ComponentRunner]) -> None:
        self._runners = runners
        self._templates = runners[0].templates

    def block(self, index: int, forward: Callable[[], Any]) -> Any:
        """The output of a block, by running it."""
        output = forward()
        self._templates.record(index, output)
        for runner in self._runners:
            runner.remember(index, output)
        return output
