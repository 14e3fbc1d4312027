"""Law 5: a schedule never deadlocks, reads nothing older than declared, and sends nothing that nobody
reads.
"""

from __future__ import annotations

import random

import pytest

from parasample.errors import ConfigError
from parasample.plan.blocks import Block, BlockGraph
from parasample.plan.partition import Split
from parasample.plan.partition.stages import stages
from parasample.plan.schedule import Schedule
from parasample.plan.simulate import Costs, predicted_speedup, sequential_seconds, simulate

STEPS = 12


def chain(num_blocks: int, skips: bool = False) -> BlockGraph:
    """A time embedding that everybody computes, blocks in a row (with skips as in a U-Net), and the
    output.
    """
    blocks = [Block("time", 0, 0.0, (), 4, 0, True, False)]
    for i in range(1, num_blocks + 1):
        inputs = {0, i - 1} if i > 1 else {0}
        mirror = num_blocks + 1 - i
        if skips and mirror < i - 1:
            inputs.add(mirror)
        blocks.append(Block(f"blocks.{i}", 0, 1.0, tuple(sorted(inputs)), 100 + i, 0, False, False))
    blocks.append(Block("", 0, 0.0, (num_blocks,), 7, 0, False, True))
    return BlockGraph(tuple(blocks))


def contiguous(graph: BlockGraph, components: int) -> Split:
    owners: list[tuple[int, ...]] = [tuple(range(components))]
    inner = len(graph.blocks) - 2
    owners += [(min(i * components // inner, components - 1),) for i in range(inner)]
    return Split((*owners, (components - 1,)))


def nested(graph: BlockGraph, components: int) -> Split:
    """Component N-1 has the first and the last blocks, N-2 those just inside, and so on: shells."""
    inner = len(graph.blocks) - 2
    shells = [min(min(i, inner - 1 - i) * 2 * components // inner, components - 1) for i in range(inner)]
    owners = [(components - 1 - shell,) for shell in shells]
    return Split((tuple(range(components)), *owners, (components - 1,)))


def scattered(graph: BlockGraph, components: int, seed: int) -> Split:
    """Any component for any block; the last has the output."""
    draw = random.Random(seed)
    inner = len(graph.blocks) - 2
    parts = [*range(components), *(draw.randrange(components) for _ in range(inner - components))]
    draw.shuffle(parts)
    return Split((tuple(range(components)), *((part,) for part in parts), (components - 1,)))


CASES = [
    pytest.param(
        components, stride, warm_up, reading, sharded, id=f"N{components}-S{stride}-w{warm_up}-{name}"
    )
    for components in (1, 2, 3, 4, 8)
    for stride in (1, 2, 3, 4)
    for warm_up in (1, 2, 5, STEPS)
    for reading, sharded, name in (
        ("stale", False, "stale"), ("ahead", False, "ahead"), ("stale", True, "stale-sharded"),
        ("ahead", True, "ahead-sharded"),
    )
]  # fmt: skip


@pytest.mark.parametrize(("components", "stride", "warm_up", "reading", "sharded"), CASES)
def test_every_schedule_ends_and_everything_sent_is_read(
    components: int, stride: int, warm_up: int, reading: str, sharded: bool
) -> None:
    graph = chain(max(2 * components, 6), skips=True)
    splits = [contiguous(graph, components), nested(graph, components), scattered(graph, components, 0)]
    for split in splits:
        schedule = Schedule(graph, split, STEPS, stride, warm_up, reading, sharded)  # type: ignore[arg-type]
        timeline = simulate(schedule, Costs([block.cost for block in graph.blocks]))
        assert timeline.oldest <= (1 if reading == "stale" else schedule.horizon)
        assert len(timeline.lanes) == components + stride - 1


def test_an_asynchronous_step_takes_as_long_as_the_slowest_component() -> None:
    graph = chain(12)
    costs = Costs([block.cost for block in graph.blocks])
    for components in (2, 3, 4):
        schedule = Schedule(graph, contiguous(graph, components), 50, warm_up=1)
        assert sequential_seconds(schedule, costs) == 50 * 12
        assert simulate(schedule, costs).seconds == pytest.approx(12 + 49 * 12 / components)


def test_a_stride_divides_the_batches() -> None:
    graph = chain(12)
    costs = Costs([block.cost for block in graph.blocks])
    schedule = Schedule(graph, contiguous(graph, 2), 41, stride=2, warm_up=1)
    assert simulate(schedule, costs).seconds == pytest.approx(12 + 20 * 6)
    assert predicted_speedup(schedule, costs) == pytest.approx(41 * 12 / (12 + 20 * 6))


def test_an_exchange_hides_behind_compute_where_one_component_is_inside_the_other() -> None:
    """What the outer component sends is made halfway through its step, and read halfway through the next."""
    graph = chain(12)
    inner = Split(((0, 1), *((1,) if i in (1, 2, 3, 10, 11, 12) else (0,) for i in range(1, 13)), (1,)))
    compute = [block.cost for block in graph.blocks]

    def extra(split: Split, latency: float) -> float:
        schedule = Schedule(graph, split, 50)
        return (
            simulate(schedule, Costs(compute, latency=latency)).seconds
            - simulate(schedule, Costs(compute)).seconds
        )

    assert extra(inner, latency=1.0) < 2.0, "hidden in all 50 steps"
    assert extra(contiguous(graph, 2), latency=1.0) == pytest.approx(49.0), "exposed once a step"
    assert extra(inner, latency=5.0) > 49 * 3.0, "nothing hides more than there is to compute"


def test_only_what_is_read_is_sent_and_the_output_to_everybody() -> None:
    graph = chain(10, skips=True)
    split = contiguous(graph, 2)
    schedule = Schedule(graph, split, STEPS, warm_up=1)
    timeline = simulate(schedule, Costs([0.0] * len(graph.blocks)))
    crossing = sum(graph.blocks[i].output_bytes for i in schedule.reads[1])
    assert timeline.bytes_sent[0] == [0] + [crossing] * (STEPS - 2) + [0], (
        "the last values would never be read"
    )
    assert timeline.bytes_sent[1] == [0] + [7] * (STEPS - 1)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_ahead_works_on_the_step_that_reads_it(stride: int) -> None:
    """What a component reads was made for the very step that it works on, once the pipeline is full."""
    graph = chain(12, skips=True)
    schedule = Schedule(graph, contiguous(graph, 4), 40, stride, warm_up=1 + 3 * stride, reading="ahead")
    last = schedule.num_workers - 1
    for step in range(schedule.warm_up, 40):
        for worker in range(schedule.num_workers):
            for action in schedule.actions(worker, step):
                if action.kind == "receive" and action.block != schedule.output:
                    made_for = schedule.latents_step(action.peers[0], action.produced)
                    wanted = schedule.target(worker, step)
                    assert made_for == wanted or schedule.stage(worker) == schedule.stages.count - 1
                    assert worker != last or made_for == min(wanted, made_for)


def test_nested_components_work_ahead_in_stages() -> None:
    """The outer component's first part is for two steps later than its last part, which runs first."""
    graph = chain(12, skips=True)
    split = nested(graph, 2)
    schedule = Schedule(graph, split, 30, warm_up=3, reading="ahead")
    assert schedule.rank_of == (1, 0, 1)
    assert [schedule.latents_step(worker, 10) for worker in range(3)] == [12, 11, 10]
    assert schedule.forwards((0, 2), 10) == ((2,), (0,))
    compute = [block.cost for block in graph.blocks]
    stale = Schedule(graph, split, 30, warm_up=3)
    ahead, behind = (simulate(s, Costs(compute)) for s in (schedule, stale))
    assert ahead.seconds <= behind.seconds + 6, "two steps of its first part beside the last of the warm-up"
    assert sum(map(sum, ahead.bytes_sent)) <= sum(map(sum, behind.bytes_sent)) + 2 * 6 * 116
    skips = [schedule.wire(block, 10) for block in schedule.reads[2] if schedule.owner(block) == 0]
    assert {schedule.age(wire) for wire in skips} == {2}, "its skip connections wait for two steps"
    assert [schedule.ranks_reached(wire) for wire in skips] == [(), (), (0,)], "on its own rank"


@pytest.mark.parametrize("components", [2, 3, 4])
def test_stages_only_read_earlier_ones(components: int) -> None:
    graph = chain(16, skips=True)
    for split in (nested(graph, components), *(scattered(graph, components, seed) for seed in range(5))):
        found = stages(graph, split)
        for index, block in enumerate(graph.blocks):
            mine = found.split.owners[index]
            if block.everywhere:
                continue
            assert found.component[mine[0]] == split.owners[index][0]
            for source in block.inputs:
                theirs = found.split.owners[source]
                if mine[0] not in theirs:
                    assert found.phase[theirs[0]] < found.phase[mine[0]]
    assert stages(graph, contiguous(graph, components)).component == tuple(range(components))


def test_stale_components_work_on_the_latents_at_hand() -> None:
    graph = chain(12)
    schedule = Schedule(graph, contiguous(graph, 3), 20, stride=2, warm_up=2)
    assert [schedule.latents_step(0, step) for step in range(6)] == [0, 1, 2, 2, 4, 4]
    assert [schedule.target(0, step) for step in (2, 4)] == [3, 5], "one step ahead with stride 2"
    assert [schedule.target(rank, 2) for rank in (2, 3)] == [2, 3], (
        "a copy of the last component for each step"
    )


def test_what_cannot_work_is_refused() -> None:
    graph = chain(6)
    split = contiguous(graph, 2)
    with pytest.raises(ConfigError, match="stride=0"):
        Schedule(graph, split, 5, stride=0)
    with pytest.raises(ConfigError, match=r"warm_up=6 is outside 1\.\.5"):
        Schedule(graph, split, 5, warm_up=6)
    with pytest.raises(ConfigError, match="unknown"):
        Schedule(graph, split, 5, reading="fresh")  # type: ignore[arg-type]
