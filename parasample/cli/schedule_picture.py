"""Who computes what when on the depth axis: one lane per device, time from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from parasample.cli.pictures import FAINT, INK, STYLE
from parasample.plan.schedule import Schedule
from parasample.plan.simulate import Interval, Timeline

# One colour per component, told apart in grey and with colour blindness too; then they repeat.
COLOURS = ("#b5367a", "#3b7dd8", "#e0912f", "#2f9e8f", "#7a5cc4", "#8a8f3a", "#c4574a", "#4d6a86")
_WHOLE = "#dcdce2"
_READING = (
    "Numbers are steps. Grey: the whole model. Colour: a device's own component, which reads what the others "
    "made the time before.\nThin bars: what it made is on its way while the next bar runs; arrows show once "
    "where it goes. Gaps: a device waits for another."
)
_HEIGHT = 0.5  # of a bar, in lanes
_LEFT, _RIGHT = 0.205, 0.98  # of the figure's width


def schedule_figure(
    schedule: Schedule,
    timeline: Timeline,
    drawn: int,
    step: float,
    title: str,
    subtitle: str,
    notes: Sequence[str],
    path: Path,
) -> None:
    """Write the run below what one device does meanwhile; PNG or SVG by the file's ending.

    Args:
        schedule, timeline: of a run; see `simulate`.
        drawn: its first steps, so many of them; the end of a run, where devices finish one by one, had better
            not be among them.
        step: of the whole model on one device, in the timeline's seconds.
        notes: [N] a few words on each component, which stand beside its devices.
    """
    height = 1.95 + 0.72 * (schedule.num_ranks + 1)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(11, height))
        figure.subplots_adjust(left=_LEFT, right=_RIGHT, top=1 - 0.95 / height, bottom=0.62 / height)
        figure.text(0.02, 1 - 0.42 / height, title, fontsize=14, weight="bold")
        figure.text(0.02, 1 - 0.7 / height, subtitle, fontsize=9.5, color=FAINT)
        figure.text(0.02, 0.22 / height, _READING, fontsize=8.5, color=FAINT)
        lanes = [[i for i in lane if i.step < drawn and i.kind == "compute"] for lane in timeline.lanes]
        end = max(interval.end for lane in lanes for interval in lane)
        _one_device(axes, drawn, step, end)
        for rank in range(schedule.num_ranks):
            _lane(axes, schedule, lanes[rank], rank, end / 400)
            _ways(axes, schedule, timeline, rank, end)
        _arrows(axes, schedule, timeline, drawn)
        _dress(axes, schedule, end, step, notes)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _one_device(axes: Axes, steps: int, step: float, end: float) -> None:
    """Its steps until the others are done with all of them; the last may be cut."""
    for index in range(steps):
        begin = index * step
        if begin < end:
            _bar(axes, 0, begin, min(step, end - begin), _WHOLE, str(index + 1), INK)


def _lane(axes: Axes, schedule: Schedule, lane: Sequence[Interval], rank: int, unseen: float) -> None:
    """A device's bars; waits shorter than `unseen` are left out."""
    worker = schedule.workers_on(rank)[-1]
    for index in sorted({interval.step for interval in lane}):
        pieces = _joined([(i.begin, i.end) for i in lane if i.step == index], unseen)
        whole = schedule.whole(worker, index)
        colour, ink = (_WHOLE, INK) if whole else (_colour(schedule, rank), "white")
        widest = max(pieces, key=lambda piece: piece[1] - piece[0])
        for begin, end in pieces:
            label = _finished(schedule, worker, index) if (begin, end) == widest else ""
            _bar(axes, rank + 1, begin, end - begin, colour, label, ink)


def _ways(axes: Axes, schedule: Schedule, timeline: Timeline, rank: int, end: float) -> None:
    """Thin bars while something that a device sent is on its way."""
    ways = sorted((sent, there) for _, source, _, _, sent, there in timeline.messages if source == rank)
    for begin, until in _joined(ways, 0.0):
        if begin < end:
            axes.barh(rank + 1 + _HEIGHT / 2 + 0.09, min(until, end) - begin, left=begin, height=0.07,
                      color=_colour(schedule, rank), zorder=3)  # fmt: skip


def _joined(pieces: Sequence[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Pieces of time in order; those no further apart than `gap` become one."""
    found: list[tuple[float, float]] = []
    for begin, end in pieces:
        if found and begin <= found[-1][1] + gap:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def _finished(schedule: Schedule, worker: int, index: int) -> str:
    """The steps that what a worker does in a step is for: "3", or "3-4" of a batch."""
    if schedule.together(worker, index):
        return str(index + 1)
    if schedule.stage(worker) == schedule.stages.count - 1 or schedule.stride == 1:
        return str(index + schedule.copy(worker) + 1)
    return f"{index + 1}-{min(index + schedule.stride, schedule.num_steps)}"


def _colour(schedule: Schedule, rank: int) -> str:
    return COLOURS[min(rank, schedule.split.components - 1) % len(COLOURS)]


def _bar(axes: Axes, lane: int, begin: float, width: float, colour: str, label: str, ink: str) -> None:
    axes.barh(lane, width, left=begin, height=_HEIGHT, color=colour, edgecolor="white", lw=1.4, zorder=2)
    axes.text(begin + width / 2, lane, label, ha="center", va="center", color=ink, zorder=4, fontsize=9)


def _arrows(axes: Axes, schedule: Schedule, timeline: Timeline, drawn: int) -> None:
    """Where hidden states go, for one batch in the middle: behind the bars, so that these stay readable."""
    batch = max((drawn - schedule.warm_up) // schedule.stride // 2 - 1, 0)
    made = schedule.warm_up + batch * schedule.stride
    ways: dict[tuple[int, int], tuple[float, float]] = {}
    for block, source, reader, index, sent, there in timeline.messages:
        if index == made and block != schedule.output:
            ways[source, reader] = max(ways.get((source, reader), (0.0, 0.0)), (sent, there))
    for (source, reader), (sent, there) in ways.items():
        down = 1 if reader > source else -1
        edge = down * (_HEIGHT / 2 + 0.02)
        axes.add_patch(FancyArrowPatch(
            (sent, source + 1 + edge), (there, reader + 1 - edge), arrowstyle="-|>", mutation_scale=9,
            color=_colour(schedule, source), lw=1.3, zorder=1.5, shrinkA=0, shrinkB=0,
        ))  # fmt: skip


def _dress(axes: Axes, schedule: Schedule, end: float, step: float, notes: Sequence[str]) -> None:
    names = ["one device", *(f"device {rank}" for rank in range(schedule.num_ranks))]
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_ylim(len(names) - 0.4, -0.75)
    axes.set_xlim(0, end * 1.002)
    last = schedule.split.components - 1
    for lane, name in enumerate(names):
        ink = _colour(schedule, lane - 1) if lane else INK
        note = notes[min(lane - 1, last)] if lane else "in the same time"
        for text, below, size, weight, colour in (
            (name, -0.14, 10, "bold", ink), (note, 0.17, 8, "normal", FAINT),
        ):  # fmt: skip
            axes.annotate(
                text, (0.02, lane + below), xycoords=("figure fraction", "data"), annotation_clip=False,
                va="center", fontsize=size, weight=weight, color=colour,
            )  # fmt: skip
    start = schedule.warm_up * step
    axes.plot([start, start], [-0.62, len(names) - 0.5], color=FAINT, lw=0.9, ls=(0, (3, 3)), zorder=1)
    axes.text(start / 2, -0.5, "warm-up", fontsize=9, color=FAINT, ha="center", va="center")
    axes.text(start + 0.06 * step, -0.5, "asynchronous", fontsize=9, color=FAINT, va="center")
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


__all__ = ["COLOURS", "schedule_figure"]
