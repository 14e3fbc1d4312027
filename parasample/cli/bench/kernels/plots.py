"""Two pictures of an op's rows: a roofline, and bandwidth over size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parasample.cli.pictures import ACCENT, FAINT, INK, STYLE

# Our faces in shades of the accent, baselines in colours of their own.
LOOKS = {
    "parasample": (ACCENT, "o"), "triton": ("#e07bb0", "P"), "reference": ("#b9b9c2", "x"),
    "eager": (INK, "^"), "published": ("#3b7dd8", "s"),
    "compile, cumsum": ("#1f9d8a", "v"), "compile, rows": ("#e0912f", "D"),
}  # fmt: skip
OTHER = ("#8a63c9", "h")


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({row["contender"] for row in rows}, key=lambda name: [*LOOKS, name].index(name))


def _start(op: str, device: str, subject: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(8.4, 5.0))
    figure.subplots_adjust(left=0.09, right=0.77, top=0.82, bottom=0.12)
    figure.text(0.09, 0.935, f"{op}: {subject}", fontsize=13, weight="bold")
    figure.text(0.09, 0.885, device, fontsize=9, color=FAINT)
    return figure, axes


def _finish(figure: Figure, axes: Axes, path: Path) -> None:
    axes.tick_params(which="both", labelsize=9, length=0, pad=5)
    axes.grid(which="major", color="#ececf0", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def roofline_figure(op: str, rows: list[dict[str, Any]], ceilings: dict[str, Any], path: Path) -> None:
    """Write arithmetic intensity against GFLOP/s under the measured copy bandwidth and multiply-add peak."""
    bandwidth, peak = ceilings["copy_gb_per_s"], ceilings["gflop_per_s"]
    with plt.rc_context(STYLE):
        figure, axes = _start(op, ceilings["device"], "how near to what the device can do")
        intensities = sorted({row["flops"] / row["bytes"] for row in rows})
        ridge = peak / bandwidth
        left, right = min([*intensities, ridge]) / 2, max([*intensities, ridge]) * 4
        axes.plot([left, ridge, right], [bandwidth * left, peak, peak], color=INK, lw=1.4)
        for name in _names(rows):
            own = [row for row in rows if row["contender"] == name]
            colour, marker = LOOKS.get(name, OTHER)
            points = [(row["flops"] / row["bytes"], row["flops"] / row["us_p20"] / 1e3) for row in own]
            axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, s=26, alpha=0.8, lw=1,
                         label=name)  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left, right)
        axes.annotate(f"multiply-add peak {peak:,.0f} GFLOP/s", (right, peak), (0, 5),
                      textcoords="offset points", fontsize=8.5, color=FAINT, ha="right")  # fmt: skip
        middle = (max(intensities) * ridge) ** 0.5 if ridge > max(intensities) else ridge / 2
        axes.annotate(f"copy {bandwidth:,.1f} GB/s", (middle, bandwidth * middle), (8, -8),
                      textcoords="offset points", fontsize=8.5, color=FAINT, va="top")  # fmt: skip
        axes.set_xlabel("arithmetic intensity, FLOP per byte that must move", fontsize=9.5)
        axes.set_ylabel("GFLOP/s", fontsize=9.5)
        _finish(figure, axes, path)


def bandwidth_figure(op: str, rows: list[dict[str, Any]], ceilings: dict[str, Any], path: Path) -> None:
    """Write GB/s over size, a line per contender, with the line of a large copy."""
    swept = [row for row in rows if row["sweep"]]
    copy = ceilings["copy_gb_per_s"]
    with plt.rc_context(STYLE):
        figure, axes = _start(op, ceilings["device"], "bandwidth over size, out of cache")
        for name in _names(swept):
            points = sorted((row["size"], row["gb_per_s"]) for row in swept if row["contender"] == name)
            colour, marker = LOOKS.get(name, OTHER)
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=5, lw=1.6, label=name)
        axes.axhline(copy, color=INK, lw=1.2, ls=(0, (4, 3)), label=f"large copy, {copy:,.1f} GB/s")
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, None)
        axes.set_xlabel("D, elements of one state", fontsize=9.5)
        axes.set_ylabel("GB/s of the bytes that must move", fontsize=9.5)
        _finish(figure, axes, path)
