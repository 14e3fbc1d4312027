"""What a message takes by its size, drawn for every transport, with the limit that memory sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parasample.cli.pictures import ACCENT, FAINT, INK, STYLE, plt

LOOKS = {
    "shm": ("parasample, shared memory", ACCENT, "o"),
    "gloo": ("parasample over Gloo", "#d98a2b", "D"),
    "torch": ("torch.distributed", "#3b7dd8", "s"),
}
UNITS = ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def exchange_figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Write one-way time over size, log-log; p20 to p80 shaded, a plain copy as the limit."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.6))
        figure.subplots_adjust(left=0.11, right=0.96, top=0.8, bottom=0.13)
        figure.text(0.11, 0.925, "A message from one rank to another", fontsize=13, weight="bold")
        figure.text(0.11, 0.87, f"{rows[0]['device']}; median, p20 to p80 shaded; lower is better",
                    fontsize=9, color=FAINT)  # fmt: skip
        for transport, (name, colour, marker) in LOOKS.items():
            mine = sorted(
                (row for row in rows if row["transport"] == transport), key=lambda row: row["bytes"]
            )
            if not mine:
                continue
            sizes = [row["bytes"] for row in mine]
            axes.plot(
                sizes, [row["microseconds"] for row in mine], color=colour, marker=marker, ms=5, label=name
            )
            low, high = ([row[f"microseconds_{p}"] for row in mine] for p in ("p20", "p80"))
            axes.fill_between(sizes, low, high, color=colour, alpha=0.15, lw=0)
        limit = sorted((row["bytes"], row["microseconds"]) for row in rows if row["transport"] == "copy")
        axes.plot(*zip(*limit, strict=True), color=INK, lw=1, ls=(0, (4, 3)), label="a copy in one process")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.minorticks_off()
        ticks = sorted({row["bytes"] for row in rows})
        axes.set_xticks(ticks, labels=[_size(size) for size in ticks])
        axes.set_xlabel("message", fontsize=9.5)
        axes.set_ylabel("one way, microseconds", fontsize=9.5)
        axes.tick_params(labelsize=9, length=0, pad=5)
        axes.grid(axis="y", color="#ececf0", lw=0.8)
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _size(count: int) -> str:
    unit, name = next((unit, name) for unit, name in UNITS if count >= unit)
    return f"{count / unit:.3g} {name}"
