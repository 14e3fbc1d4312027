"""The demo's pictures: sequential beside parallel samples, and a trajectory converging round by round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from torch import Tensor

from parasample.bridge.load import SAMPLERS
from parasample.cli.sampling import Case, decode
from parasample.plan.cost import Prediction
from parasample.runtime.stats import Stats

INK, FAINT, ACCENT = "#1c1c22", "#77777f", "#b5367a"
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": "#c8c8ce",
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def images_figure(strips: list[tuple[dict[str, Any], Tensor]], prompts: list[str], path: Path) -> None:
    """Write one row of pictures [prompts, H, W, 3] per table row: pairs, and maybe one more."""
    tile, gap, pair_gap, top = 0.95, 0.05, 0.3, 0.95
    pairs = -(-len(strips) // 2)
    left = 0.3 + max(_inches(text, **look) for row, _ in strips for _, text, look in _label(row)) + 0.3
    width = left + len(prompts) * (tile + gap) + 0.3
    height = top + len(strips) * tile + pairs * gap + (pairs - 1) * pair_gap + 0.25
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        figure.text(0.3 / width, 1 - 0.32 / height, "Same pictures, fewer rounds", fontsize=14, weight="bold")
        y = height - top
        for index, (row, images) in enumerate(strips):
            y -= tile
            for column, image in enumerate(images):
                x = left + column * (tile + gap)
                axes = figure.add_axes((x / width, y / height, tile / width, tile / height))
                _picture(axes, image)
                if index == 0:
                    axes.set_title(prompts[column], fontsize=9, pad=6)
            _row_label(figure, row, width, height, y, tile)
            y -= gap if index % 2 == 0 else gap + pair_gap
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _label(row: dict[str, Any]) -> list[tuple[float, str, dict[str, Any]]]:
    """What stands beside a row of pictures: lines above its middle, text and look of each part."""
    parallel = row["method"] == "parallel"
    colour = INK if row["method"] == "sequential" else ACCENT
    name = f"{row['sampler']}, {row['steps']} steps"
    timed = row["seconds"] is not None
    detail = (
        f"{row['rounds']:.0f} rounds, {row['seconds']:.1f} s"
        if timed
        else f"time of {row['rounds']:.0f} steps"
    )
    lines = [] if parallel else [(2.2, name, {"fontsize": 9.5, "weight": "bold"})]
    return [
        *lines,
        (0.6, row["method"], {"fontsize": 9, "color": colour}),
        (-0.6, detail, {"fontsize": 9, "color": colour}),
    ]


def _inches(text: str, fontsize: float, weight: str = "normal", **_: Any) -> float:
    font = FontProperties(family=STYLE["font.sans-serif"], size=fontsize, weight=weight)
    return TextPath((0, 0), text, prop=font).get_extents().width / 72  # points


def _row_label(
    figure: Figure, row: dict[str, Any], width: float, height: float, y: float, tile: float
) -> None:
    for lines, text, look in _label(row):
        above = (y + tile / 2 + 0.17 * lines) / height
        figure.text(0.3 / width, above, text, va="center", **look)


def _picture(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.numpy(), interpolation="lanczos")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def trajectory_figure(
    pipe: Any, stats: Stats, shape: torch.Size, case: Case, prompt: str, path: Path
) -> None:
    """Write each state's distance to its final value after every round, and the picture it amounts to."""
    states = torch.stack([record.states for record in stats.history if record.states is not None])[:, :, 0]
    errors = (states - states[-1]).square().mean(dim=-1).sqrt()[:, 1:]  # [R, T]
    done = [record.begin[0] for record in stats.history]
    pictures = decode(pipe, states[:, -1].reshape(-1, *shape[1:]))
    with plt.rc_context(STYLE):
        figure = _trajectory(errors.numpy(), done, pictures, _title(case, prompt, len(done)))
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _title(case: Case, prompt: str, rounds: int) -> tuple[str, str]:
    name = SAMPLERS[case.sampler][0]
    return (
        f"{case.steps} steps of {name} in {rounds} rounds",
        f"“{prompt}”, every step improved at once, round by round",
    )


def _trajectory(errors: np.ndarray, done: list[int], pictures: Tensor, title: tuple[str, str]) -> Figure:
    rounds, steps = errors.shape
    row, left, top, bottom, map_width = 0.52, 1.35, 1.0, 0.62, 6.6
    width, height = left + map_width + 1.15, top + rounds * row + bottom
    figure = plt.figure(figsize=(width, height))
    figure.text(0.3 / width, 1 - 0.36 / height, title[0], fontsize=14, weight="bold")
    figure.text(0.3 / width, 1 - 0.64 / height, title[1], fontsize=9.5, color=FAINT)
    figure.text((left - 0.32 - row) / width, (height - top + 0.1) / height, "round", fontsize=9, color=FAINT,
                ha="right")  # fmt: skip
    for index in range(rounds):
        y = height - top - (index + 1) * row
        tile = row * 0.94
        axes = figure.add_axes(((left - 0.18 - tile) / width, y / height, tile / width, tile / height))
        _picture(axes, pictures[index])
        figure.text((left - 0.32 - tile) / width, (y + row / 2) / height, str(index + 1), fontsize=9,
                    color=FAINT, ha="right", va="center")  # fmt: skip
    axes = figure.add_axes((left / width, bottom / height, map_width / width, rounds * row / height))
    unfinished = np.arange(1, steps + 1)[None] > np.array(done)[:, None]  # [R, T]
    shown = np.ma.masked_array(np.log10(np.maximum(errors, 1e-12)), mask=~unfinished)
    colours = plt.get_cmap("magma").with_extremes(bad="#e9e9ee")
    mesh = axes.imshow(
        shown,
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        extent=(0, steps, rounds, 0),
        vmin=-4,
        vmax=0,
    )
    for index in range(1, rounds):
        axes.axhline(index, color="white", lw=1.2)
    middle = done[-2] / 2 if rounds > 1 else steps / 2
    axes.text(middle, rounds - 0.5, "finished", fontsize=9, color=FAINT, ha="center", va="center")
    axes.set_xlim(0, steps)
    axes.set_yticks([])
    axes.set_xticks(np.linspace(0, steps, 5).round().astype(int))
    axes.set_xlabel("step of the sampler, from noise to picture", fontsize=9.5)
    axes.tick_params(labelsize=8.5, length=0, pad=5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar_axes = figure.add_axes(
        ((left + map_width + 0.22) / width, bottom / height, 0.13 / width, rounds * row / height)
    )
    bar = figure.colorbar(mesh, cax=bar_axes)
    bar.outline.set_visible(False)
    bar.set_ticks([-4, -3, -2, -1, 0], labels=["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"])
    bar.ax.tick_params(labelsize=8, length=0)
    bar.set_label("RMS distance to the final state", fontsize=9)
    return figure


def plan_figure(predictions: list[Prediction], best: Prediction, title: str, device: str, path: Path) -> None:
    """Write predicted seconds over window, with the line of sequential sampling."""
    sequential, *parallel = predictions
    windows, seconds = [p.window for p in parallel], [p.seconds for p in parallel]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.0))
        figure.subplots_adjust(left=0.12, right=0.96, top=0.8, bottom=0.15)
        figure.text(0.12, 0.925, title, fontsize=13, weight="bold")
        figure.text(0.12, 0.865, f"predicted seconds per call, {device}", fontsize=9, color=FAINT)
        axes.axhline(sequential.seconds, color=INK, lw=1.2, ls=(0, (4, 3)))
        axes.plot(windows, seconds, color=ACCENT, lw=1.8, marker="o", ms=5)
        axes.annotate(
            "sequential", (windows[0], sequential.seconds), (0, 5), textcoords="offset points", fontsize=9
        )
        for prediction in parallel:
            chosen = prediction is best
            axes.annotate(
                f"{prediction.rounds:.0f} rounds", (prediction.window, prediction.seconds), (0, -14),
                textcoords="offset points", fontsize=8.5, ha="center", color=ACCENT if chosen else FAINT,
                weight="bold" if chosen else "normal",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(windows, labels=[str(window) for window in windows])
        axes.minorticks_off()
        axes.set_ylim(0, max([*seconds, sequential.seconds]) * 1.15)
        axes.set_xlabel("window (states in flight)", fontsize=9.5)
        axes.tick_params(labelsize=9, length=0, pad=5)
        axes.grid(axis="y", color="#ececf0", lw=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        figure.savefig(path, dpi=160)
        plt.close(figure)


# Distances below are rounding of the fitted Gaussians: they are drawn here, open.
LEAST = 1e-5
LOOKS = {
    "ours": ("parasample", ACCENT, "o"),
    "published": ("published rule", "#3b7dd8", "s"),
    "fewer steps": ("fewer sequential steps", INK, "^"),
}


def fidelity_figure(rows: list[dict[str, Any]], steps: int, title: str, path: Path) -> None:
    """Write RMS and Frechet distance over rounds for our rows, the published rule and fewer steps."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(9.2, 4.2))
        figure.subplots_adjust(left=0.08, right=0.97, top=0.76, bottom=0.14, wspace=0.24)
        figure.text(0.08, 0.925, title, fontsize=13, weight="bold")
        figure.text(
            0.08, 0.865, f"against {steps} sequential steps; lower left is better", fontsize=9, color=FAINT
        )
        _fidelity_panel(panels[0], rows, "rms", "RMS error of final latents")
        _fidelity_panel(panels[1], rows, "frechet", "Frechet distance of features")
        floor = next((row["frechet"] for row in rows if row["label"] == "sequential, other seeds"), None)
        if floor is not None:
            panels[1].axhline(max(floor, LEAST), color=FAINT, lw=1, ls=(0, (4, 3)))
            panels[1].annotate(
                "other seeds", (1, max(floor, LEAST)), (-2, 4), xycoords=("axes fraction", "data"),
                textcoords="offset points", fontsize=8.5, color=FAINT, ha="right",
            )  # fmt: skip
        panels[0].legend(frameon=False, fontsize=9, loc="lower left")
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _fidelity_panel(axes: Axes, rows: list[dict[str, Any]], field: str, label: str) -> None:
    for kind, (name, colour, marker) in LOOKS.items():
        points = sorted((row["rounds"], row[field]) for row in rows if row["label"] == kind)
        axes.plot(
            [rounds for rounds, _ in points], [max(value, LEAST) for _, value in points],
            color=colour, marker=marker, ms=5, lw=1.5, label=name,
        )  # fmt: skip
        for rounds in (rounds for rounds, value in points if value < LEAST):
            axes.plot(
                rounds, LEAST, color=colour, marker=marker, ms=6.5, markerfacecolor="white", clip_on=False
            )
            axes.annotate(
                "< 10⁻⁵", (rounds, LEAST), (-7, 0), textcoords="offset points", fontsize=8.5, color=colour,
                ha="right", va="center",
            )  # fmt: skip
    axes.set_yscale("log")
    axes.set_title(label, fontsize=9.5, loc="left", pad=8)
    axes.set_xlabel("rounds (median)", fontsize=9.5)
    axes.tick_params(labelsize=9, length=0, pad=5)
    axes.grid(axis="y", color="#ececf0", lw=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
