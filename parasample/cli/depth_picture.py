"""What depth costs in fidelity, drawn: error over the time that a run takes, for every rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parasample.cli.pictures import ACCENT, FAINT, INK, STYLE, plt

# Rule of a row: its name in the legend, and its colour.
LOOKS = {
    "published": ("AsyncDiff as published", "#3b7dd8"),
    "auto": ("parasample", ACCENT),
}


def depth_figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Write RMS over "as long as this many sequential steps", a panel for each sampler.

    A line goes through the warm-ups of one number of components and one stride; the grey one through
    sequential sampling with fewer steps.
    """
    with plt.rc_context(STYLE):
        figure = _depth(rows)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _depth(rows: list[dict[str, Any]]) -> Figure:
    cases = list(dict.fromkeys((row["title"], row["steps"]) for row in rows))
    width = max(1.2 + 3.9 * len(cases), 9.0)
    left = 0.75 / width
    figure, panels = plt.subplots(1, len(cases), figsize=(width, 4.3), squeeze=False)
    figure.subplots_adjust(left=left, right=1 - 0.25 / width, top=0.74, bottom=0.14, wspace=0.2)
    figure.text(left, 0.925, "Depth: error against time", fontsize=13, weight="bold")
    figure.text(
        left, 0.865, "a line for each number of devices, through several warm-ups; hollow: stride 2. "
        "Lower left is better", fontsize=9, color=FAINT,
    )  # fmt: skip
    for axes, (title, steps) in zip(panels[0], cases, strict=True):
        _panel(axes, [row for row in rows if (row["title"], row["steps"]) == (title, steps)])
        axes.set_title(f"{title}, {steps} steps", fontsize=9.5, loc="left", pad=8)
    panels[0][0].set_ylabel("RMS error of final latents", fontsize=9.5)
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, frameon=False, fontsize=9, ncols=3, loc="upper right",
        bbox_to_anchor=(1 - 0.2 / width, 0.98), columnspacing=1.4,
    )  # fmt: skip
    return figure


def _panel(axes: Axes, rows: list[dict[str, Any]]) -> None:
    fewer = sorted({(row["path"], row["rms"]) for row in rows if row["label"] == "fewer steps"})
    axes.plot(*zip(*fewer, strict=True), color=INK, lw=3, alpha=0.25, label="fewer sequential steps")
    for rule, (name, colour) in LOOKS.items():
        mine = [row for row in rows if row["label"] == rule]
        for components, stride in sorted({(row["components"], row["stride"]) for row in mine}):
            line = sorted(
                (row["path"], row["rms"])
                for row in mine
                if (row["components"], row["stride"]) == (components, stride)
            )
            axes.plot(
                *zip(*line, strict=True), color=colour, lw=1, marker="o", ms=4.5,
                markerfacecolor="white" if stride > 1 else colour, label=name,
            )  # fmt: skip
            name = "_"  # one entry in the legend
            axes.annotate(
                str(components + stride - 1), line[-1], (5, 3), textcoords="offset points", fontsize=8.5,
                color=colour,
            )  # fmt: skip
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xlabel("takes as long as ... sequential steps", fontsize=9.5)
    axes.tick_params(labelsize=9, length=0, pad=5)
    axes.grid(axis="y", color="#ececf0", lw=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
