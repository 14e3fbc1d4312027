"""Who computes what when on the depth axis: one lane per device, steps from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from parasample.cli.pictures import FAINT, INK, STYLE

# One colour per component, told apart in grey and with colour blindness too; then they repeat.
COLOURS = ("#b5367a", "#3b7dd8", "#e0912f", "#2f9e8f", "#7a5cc4", "#8a8f3a", "#c4574a", "#4d6a86")
_WHOLE = "#dcdce2"
_READING = (
    "Numbers are steps. Grey: the whole model. Colour: a device's own component, which reads what the others "
    "made of the step before (arrows);\nthin bars: it sends its part while the next step runs."
)
_HEIGHT = 0.56  # of a bar, in lanes


@dataclass(frozen=True)
class Pace:
    """What one step takes; any unit of time.

    Attributes:
        compute: [N] of each component; their sum is a step of the whole model.
        exchange: (source, reader, time) between components, once per step.
        warm_up, asynchronous: steps of each kind to draw.
        stride: steps between two runs of a component; the last component has as many devices.
    """

    compute: tuple[float, ...]
    exchange: tuple[tuple[int, int, float], ...]
    warm_up: int
    asynchronous: int
    stride: int = 1

    @property
    def step(self) -> float:
        """A step of the whole model on one device."""
        return sum(self.compute)

    @property
    def cycle(self) -> float:
        """From one run of the components to the next: the slowest of compute and of a link."""
        return max(*self.compute, *(time for _, _, time in self.exchange))

    @property
    def lanes(self) -> tuple[int, ...]:
        """The component of each device."""
        last = len(self.compute) - 1
        return (*range(last), *([last] * self.stride))


def schedule_figure(pace: Pace, title: str, subtitle: str, notes: Sequence[str], path: Path) -> None:
    """Write the schedule below what one device takes for the same steps; PNG or SVG by the file's ending.

    `notes`: [N] a few words on each component, which stand beside its devices.
    """
    height = 2.0 + 0.6 * (len(pace.lanes) + 1)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(11, height))
        figure.subplots_adjust(left=0.095, right=0.975, top=1 - 1.0 / height, bottom=0.6 / height)
        figure.text(0.095, 1 - 0.42 / height, title, fontsize=14, weight="bold")
        figure.text(0.095, 1 - 0.7 / height, subtitle, fontsize=9.5, color=FAINT)
        figure.text(0.095, 0.26 / height, _READING, fontsize=8.5, color=FAINT)
        for index in range(pace.warm_up + pace.asynchronous):
            for lane in range(len(pace.lanes) + 1 if index < pace.warm_up else 1):
                _bar(axes, lane, index * pace.step, pace.step, _WHOLE, str(index + 1), INK)
        end = _draw_asynchronous(axes, pace)
        _mark_gain(axes, pace, end, notes)
        _dress(axes, pace)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _draw_asynchronous(axes: Axes, pace: Pace) -> float:
    """Bars and messages after the warm-up; returns when the last step is done."""
    last = len(pace.compute) - 1
    cycles = -(-pace.asynchronous // pace.stride)
    start = pace.warm_up * pace.step
    for cycle in range(cycles):
        begin = start + cycle * pace.cycle
        first = pace.warm_up + cycle * pace.stride + 1
        for lane, component in enumerate(pace.lanes, start=1):
            alone = component == last or pace.stride == 1
            label = str(first + max(lane - 1 - last, 0)) if alone else f"{first}-{first + pace.stride - 1}"
            _bar(axes, lane, begin, pace.compute[component], _colour(component), label, "white")
        if cycle + 1 < cycles:
            _messages(axes, pace, begin, arrows=cycle == 0)
    return start + cycles * pace.cycle


def _colour(component: int) -> str:
    return COLOURS[component % len(COLOURS)]


def _bar(axes: Axes, lane: int, begin: float, width: float, colour: str, label: str, ink: str) -> None:
    axes.barh(lane, width, left=begin, height=_HEIGHT, color=colour, edgecolor="white", lw=1.4, zorder=2)
    axes.text(begin + width / 2, lane, label, ha="center", va="center", color=ink, zorder=4,
              fontsize=8.5 if len(label) < 4 else 7)  # fmt: skip


def _messages(axes: Axes, pace: Pace, begin: float, arrows: bool) -> None:
    """Thin bars below a device while it sends; once, arrows from there to who reads it in its next step."""
    sending: dict[int, float] = {}
    for source, reader, time in pace.exchange:
        sending[source] = sending.get(source, 0.0) + time
        if arrows:
            sent, read = begin + pace.compute[source], begin + pace.cycle + 0.3 * pace.compute[reader]
            lanes = [lane for lane, component in enumerate(pace.lanes, start=1) if component == reader]
            for lane in lanes:
                edge = _HEIGHT / 2 + 0.03 if lane > source + 1 else -_HEIGHT / 2 - 0.03
                axes.add_patch(FancyArrowPatch(
                    (sent, source + 1 + edge), (read, lane - edge), arrowstyle="-|>", mutation_scale=8,
                    connectionstyle=f"arc3,rad={0.15 if lane > source + 1 else -0.15}",
                    color=_colour(source), lw=1.3, zorder=5, shrinkA=0, shrinkB=0,
                ))  # fmt: skip
    for source, time in sending.items():
        width = max(time, 0.25 * pace.cycle)  # at least wide enough to be seen
        axes.barh(source + 1 + _HEIGHT / 2 + 0.07, width, left=begin + pace.compute[source], height=0.07,
                  color=_colour(source), zorder=3)  # fmt: skip


def _mark_gain(axes: Axes, pace: Pace, end: float, notes: Sequence[str]) -> None:
    """What one device still has to do when the others are done, and beside each device what it runs."""
    sequential = (pace.warm_up + pace.asynchronous) * pace.step
    middle = 0.52  # between the lane of one device and the first of several
    axes.plot([end, end], [_HEIGHT / 2 + 0.02, len(pace.lanes) + 0.45], color=INK, lw=1.1, zorder=3)
    line = {"arrowstyle": "-|>", "color": INK, "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (end, middle), (sequential, middle), arrowprops=line)
    axes.text(
        (end + sequential) / 2, middle, f"  {sequential / end:.1f}x as fast  ", fontsize=11, weight="bold",
        ha="center", va="center", bbox={"color": "white", "pad": 1},
    )  # fmt: skip
    for lane, component in enumerate(pace.lanes, start=1):
        axes.text(end + 0.12 * pace.step, lane, notes[component], fontsize=9, color=_colour(component),
                  va="center")  # fmt: skip


def _dress(axes: Axes, pace: Pace) -> None:
    names = ["one device", *(f"device {lane}" for lane in range(len(pace.lanes)))]
    axes.set_yticks(range(len(names)), labels=names)
    axes.set_ylim(len(names) - 0.45, -0.75)
    axes.set_xlim(0, (pace.warm_up + pace.asynchronous) * pace.step * 1.002)
    axes.tick_params(axis="y", labelsize=9.5, length=0, pad=6, labelcolor=INK)
    axes.set_xticks([])
    start = pace.warm_up * pace.step
    axes.plot([start, start], [-0.62, len(names) - 0.5], color=FAINT, lw=0.9, ls=(0, (3, 3)), zorder=1)
    if pace.warm_up:
        axes.text(start / 2, -0.5, "warm-up", fontsize=9, color=FAINT, ha="center", va="center")
    axes.text(start + 0.08 * pace.step, -0.5, "asynchronous", fontsize=9, color=FAINT, va="center")
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


__all__ = ["COLOURS", "Pace", "schedule_figure"]
