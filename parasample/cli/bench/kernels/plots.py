"""Two pictures of an op's rows: a roofline, and bandwidth over size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parasample.cli.bench.kernels.registry import Op
from parasample.cli.pictures import ACCENT, FAINT, INK, STYLE

# Our faces in shades of the accent, baselines in colours of their own.
LOOKS = {
    "parasample": (ACCENT, "o"), "triton": ("#e07bb0", "P"), "reference": ("#b9b9c2", "x"),
    "eager": (INK, "^"), "published": ("#3b7dd8", "s"),
    "compile": ("#1f9d8a", "v"), "compile, cumsum": ("#1f9d8a", "v"), "compile, rows": ("#e0912f", "D"),
}  # fmt: skip
OTHER = ("#8a63c9", "h")


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({row["contender"] for row in rows}, key=lambda name: [*LOOKS, name].index(name))


def _start(title: str, subtitle: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(8.8, 5.0))
    figure.subplots_adjust(left=0.085, right=0.74, top=0.82, bottom=0.12)
    figure.text(0.085, 0.935, title, fontsize=13, weight="bold")
    figure.text(0.085, 0.885, subtitle, fontsize=9, color=FAINT)
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


def roofline_figure(op: Op, rows: list[dict[str, Any]], ceilings: dict[str, Any], path: Path) -> None:
    """Write arithmetic intensity against GFLOP/s under the measured copy bandwidth and multiply-add peak.

    A contender's fastest case of each kind: how it fares at other sizes is in the other picture.
    """
    bandwidth, peak = ceilings["copy_gb_per_s"], ceilings["gflop_per_s"]
    fastest = {(row["kind"], row["contender"]): row for row in sorted(rows, key=_gflop_per_s)}
    shown = list(fastest.values())
    intensities = {row["kind"]: row["flops"] / row["bytes"] for row in shown}
    ridge = peak / bandwidth
    left, right = min([*intensities.values(), ridge]) / 1.6, max([*intensities.values(), ridge]) * 4
    bottom = min(_gflop_per_s(row) for row in shown) / 3  # room for the kinds' numbers
    with plt.rc_context(STYLE):
        subtitle = f"{ceilings['device']}; fastest shape of each kind, out of cache"
        figure, axes = _start(f"{op.name} under the roofline", subtitle)
        axes.plot([left, ridge, right], [bandwidth * left, peak, peak], color=INK, lw=1.4)
        kinds = sorted(intensities, key=intensities.__getitem__)
        label, gap = left, (right / left) ** 0.022  # at least so far apart, or numbers would overlap
        for number, kind in enumerate(kinds, 1):
            intensity = intensities[kind]
            roof, label = min(bandwidth * intensity, peak), max(intensity, label * gap)
            corner = [bottom, bottom * 1.25, bottom * 1.55, roof]
            axes.plot([label, label, intensity, intensity], corner, color="#d9d9df", lw=0.9, zorder=0)
            axes.annotate(f"{number}", (label, bottom), (0, 5), textcoords="offset points", fontsize=8.5,
                          color=INK, ha="center", bbox={"fc": "white", "ec": "none", "pad": 0.3})  # fmt: skip
        named = "\n".join(f"{number}  {kind}" for number, kind in enumerate(kinds, 1))
        figure.text(0.765, 0.13, named, fontsize=8.5, color=FAINT, va="bottom", linespacing=1.5)
        for name in _names(shown):
            colour, marker = LOOKS.get(name, OTHER)
            own = [row for row in shown if row["contender"] == name]
            axes.scatter([row["flops"] / row["bytes"] for row in own], list(map(_gflop_per_s, own)),
                         color=colour, marker=marker, s=30, alpha=0.85, lw=1, label=name)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, peak * 2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.annotate(f"multiply-add peak, {peak:,.0f} GFLOP/s", (right, peak), (0, 5),
                      textcoords="offset points", fontsize=8.5, color=FAINT, ha="right")  # fmt: skip
        axes.annotate(f"copy, {bandwidth:,.1f} GB/s", (ridge, peak), (-6, 5),
                      textcoords="offset points", fontsize=8.5, color=FAINT, ha="right")  # fmt: skip
        axes.set_xlabel("arithmetic intensity, FLOP per byte that must move", fontsize=9.5)
        axes.set_ylabel("GFLOP/s", fontsize=9.5)
        _finish(figure, axes, path)


def _gflop_per_s(row: dict[str, Any]) -> float:
    return row["flops"] / row["us_p20"] / 1e3


def bandwidth_figure(op: Op, rows: list[dict[str, Any]], ceilings: dict[str, Any], path: Path) -> None:
    """Write GB/s over size, a line per contender, with the line of a large copy."""
    swept = [row for row in rows if row["sweep"]]
    copy = ceilings["copy_gb_per_s"]
    with plt.rc_context(STYLE):
        subtitle = f"{ceilings['device']}; {op.sweep}; out of cache"
        figure, axes = _start(f"{op.name}: bandwidth over size", subtitle)
        for name in _names(swept):
            points = sorted((row["size"], row["gb_per_s"]) for row in swept if row["contender"] == name)
            colour, marker = LOOKS.get(name, OTHER)
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=5, lw=1.6, label=name)
        axes.axhline(copy, color=INK, lw=1.2, ls=(0, (4, 3)), label=f"large copy, {copy:,.1f} GB/s")
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.08 * max([copy, *(row["gb_per_s"] for row in swept)]))
        axes.set_xlabel("D, elements of one state", fontsize=9.5)
        axes.set_ylabel("GB/s of the bytes that must move", fontsize=9.5)
        _finish(figure, axes, path)
