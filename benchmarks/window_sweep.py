"""Where does a window beat sequential sampling? Seconds of a round by window, from small U-Nets to SDXL's.

    python benchmarks/window_sweep.py --sizes demo sd21 sdxl --windows 8 16 32 64

One sample with guidance, DDIM, 100 steps. A round's time does not depend on what the model has learnt, so the
large models have random weights and a few rounds of each window are timed, everything between two calls of
the model included. How many rounds a sample takes is measured on the shipped model; the two give the speedup
to expect. On a CPU, and with --quick, stand-ins of the large models are run: the same blocks, fewer channels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

import parasample as ps
from parasample.bridge.load import default_device, load_pipeline
from parasample.cli.bench.overhead import Stopwatch
from parasample.cli.bench.results import Results, add_bench_options, prompts_for, spread
from parasample.cli.sampling import Case, sample_parallel, sample_rounds
from parasample.cli.text import progress, say, say_json, table
from parasample.models import demo_model_path

STEPS, GUIDANCE = 100, 5.0
TITLES = {"demo": "the shipped model", "sd21": "SD 2.1", "sdxl": "SDXL"}
NEVER = 1e-12  # a tolerance that no window meets within the rounds that are timed: all of it is evaluated
# diffusers' configurations of stabilityai/stable-diffusion-2-1 and stable-diffusion-xl-base-1.0; beside them
# what makes the stand-ins small.
CONFIGS: dict[str, dict[str, Any]] = {
    "sd21": {
        "sample_size": 96, "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048,
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
STAND_INS: dict[str, dict[str, Any]] = {
    "sd21": {"sample_size": 16, "block_out_channels": (32, 32, 64, 64), "attention_head_dim": 2},
    "sdxl": {
        "sample_size": 16, "block_out_channels": (32, 32, 64), "attention_head_dim": 2,
        "transformer_layers_per_block": (1, 1, 2),
    },
}  # fmt: skip
CONTEXT, POOLED, TIME_IDS = 77, 1280, 6  # tokens of a prompt; SDXL's pooled text and sizes


class _EnoughError(Exception):
    """Ends a call of ps.sample from inside the model."""


def main(arguments: list[str] | None = None) -> int:
    """Measure every size and window that is not in the file yet, show and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--windows", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=4, help="rounds that are timed (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=4, help="samples whose rounds are counted (default: 4)")
    add_bench_options(parser, model=False)
    args = parser.parse_args(arguments)
    if args.quick:
        args.rounds, args.seeds = 2, 1
    results = Results("window_sweep", args)
    device = torch.device(args.device or default_device())
    with progress((len(args.sizes) + 1) * len(args.windows), "window sweep", "window") as bar:
        rounds = _shipped_rounds(args, results, device, bar)
        for size in args.sizes:
            bar.set_description(TITLES[size])
            _sweep(size, args, results, device, rounds, bar)
    rows = [row for row in results.rows if row["part"] == "round"]
    plot = results.path.with_suffix(".png")
    draw(rows, plot)
    if args.json:
        say_json({"rows": rows, "file": str(results.path), "plot": str(plot)})
        return 0
    headers = ["model", "dtype", "window", "step ms", "round ms", "p20-p80", "rounds", "speedup"]
    say(table(headers, [_line(row) for row in rows], left=2))
    say("\n" + "\n".join(_verdict(size, rows) for size in args.sizes))
    say(f"{rows[0]['device']}; rows in {results.path}; plot: {plot}")
    return 0


def _shipped_rounds(
    args: argparse.Namespace, results: Results, device: torch.device, bar: Any
) -> dict[int, float]:
    """Median rounds of the shipped model by window."""
    bar.set_description("rounds of the shipped model")
    found: dict[int, float] = {}
    for window in args.windows:
        settings = {"bench": "window_sweep", "part": "rounds", "window": window, "seeds": args.seeds}
        row = results.find(settings)
        if row is None:
            pipe = load_pipeline(demo_model_path(), str(device))
            case, seeds = Case("ddim", STEPS, ps.Picard(window=window)), list(range(args.seeds))
            sampled = sample_parallel(pipe, case, prompts_for(seeds), GUIDANCE, seeds)
            assert sampled.stats is not None
            row = results.add(settings, spread([float(n) for n in sample_rounds(sampled.stats)], "rounds"))
        found[window] = row["rounds"]
        bar.update()
    return found


def _sweep(
    size: str,
    args: argparse.Namespace,
    results: Results,
    device: torch.device,
    rounds: dict[int, float],
    bar: Any,
) -> None:
    """A row for every window of one model."""
    stand_in = size in STAND_INS and (args.quick or device.type == "cpu")
    settings = {
        "bench": "window_sweep", "part": "round", "size": size, "stand_in": stand_in, "timed": args.rounds,
    }  # fmt: skip
    if results.find_all([settings | {"window": window} for window in args.windows]):
        bar.update(len(args.windows))
        return
    unet = build_unet(size, stand_in, device)
    step_s = statistics.median(_timed_rounds(unet, None, args.rounds))
    for window in args.windows:
        times = _timed_rounds(unet, window, args.rounds)
        figures = spread([1e3 * seconds for seconds in times], "round_ms")
        speedup = STEPS * 1e3 * step_s / (rounds[window] * figures["round_ms"])
        figures |= {"step_ms": 1e3 * step_s, "rounds": rounds[window], "speedup": speedup}
        figures |= {"dtype": str(unet.dtype).removeprefix("torch."), "steps": STEPS}
        results.add(settings | {"window": window}, figures)
        bar.update()


def build_unet(size: str, stand_in: bool, device: torch.device) -> UNet2DConditionModel:
    """The model of that size on the device, float16 on CUDA; made there, for random weights take long."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    if size == "demo":
        unet = UNet2DConditionModel.from_pretrained(demo_model_path() / "unet", torch_dtype=dtype).to(device)
    else:
        torch.manual_seed(0)
        with device:
            config = CONFIGS[size] | (STAND_INS[size] if stand_in else {})
            unet = UNet2DConditionModel(**config).to(dtype)
    return unet.eval().requires_grad_(False)


def _timed_rounds(unet: UNet2DConditionModel, window: int | None, count: int) -> list[float]:
    """Seconds of `count` rounds of a window, or of sequential steps; two before them warm up."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    config = unet.config
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(unet.device, unet.dtype)
    watch = Stopwatch()
    model = watch.around(_guided(unet))

    def limited(x: Tensor, t: Tensor) -> Tensor:
        if len(watch.begun) == count + 2:
            raise _EnoughError
        return model(x, t)

    run = _sequential if window is None else _picard(window)
    with torch.no_grad(), suppress(_EnoughError):
        run(limited, scheduler, start)
    if unet.device.type == "cuda":
        torch.cuda.synchronize()
    return [seconds for seconds, _ in watch.rounds(time.perf_counter())[2:]]


def _guided(unet: UNet2DConditionModel) -> Callable[[Tensor, Tensor], Tensor]:
    """The model with guidance in one batch, as pipelines call it."""
    config = unet.config
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator).to(unet.device, unet.dtype)

    context = normal(CONTEXT, config.cross_attention_dim)
    added = {}
    if config.addition_embed_type == "text_time":
        added = {"text_embeds": normal(POOLED), "time_ids": normal(TIME_IDS)}

    def model(x: Tensor, t: Tensor) -> Tensor:
        def repeated(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(len(x), 0)

        conditions = {name: repeated(tensor) for name, tensor in added.items()} or None
        without, with_prompt = unet(
            torch.cat([x, x]), torch.cat([t, t]), repeated(context), added_cond_kwargs=conditions
        ).sample.chunk(2)
        return without + GUIDANCE * (with_prompt - without)

    return model


def _sequential(model: Callable[[Tensor, Tensor], Tensor], scheduler: DDIMScheduler, x: Tensor) -> None:
    scheduler.set_timesteps(STEPS, device=x.device)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t[None]), t, x).prev_sample


def _picard(window: int) -> Callable[..., None]:
    def run(model: Callable[[Tensor, Tensor], Tensor], scheduler: DDIMScheduler, start: Tensor) -> None:
        method = ps.Picard(window=window, tolerance=NEVER)
        ps.sample(model, scheduler, start, method, num_inference_steps=STEPS)

    return run


def _line(row: dict[str, Any]) -> list[str]:
    spread_text = f"{row['round_ms_p20']:.1f}-{row['round_ms_p80']:.1f}"
    return [
        _title(row), row["dtype"], str(row["window"]), f"{row['step_ms']:.1f}", f"{row['round_ms']:.1f}",
        spread_text, f"{row['rounds']:g}", f"{row['speedup']:.2f}x",
    ]  # fmt: skip


def _title(row: dict[str, Any]) -> str:
    return TITLES[row["size"]] + (", stand-in" if row["stand_in"] else "")


def _verdict(size: str, rows: list[dict[str, Any]]) -> str:
    own = [row for row in rows if row["size"] == size]
    best = max(own, key=lambda row: row["speedup"])
    winning = [str(row["window"]) for row in own if row["speedup"] > 1]
    if not winning:
        return f"{_title(best)}: sequential is faster at every window (best {best['speedup']:.2f}x)"
    return f"{_title(best)}: parallel is faster at window {', '.join(winning)}; best {best['speedup']:.2f}x"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write milliseconds per round over window, beside what a round may take to be worth it."""
    from parasample.cli.pictures import ACCENT, FAINT, INK, STYLE, plt

    sizes = list(dict.fromkeys(row["size"] for row in rows))
    with plt.rc_context(STYLE):
        width = 1.0 + 3.7 * len(sizes)
        figure, panels = plt.subplots(1, len(sizes), figsize=(width, 4.2), squeeze=False)
        figure.subplots_adjust(left=0.75 / width, right=1 - 0.25 / width, top=0.72, bottom=0.13, wspace=0.28)
        left = 0.75 / width
        figure.text(left, 0.925, "Time of a round over window", fontsize=13, weight="bold")
        subtitle = f"{rows[0]['device']}\nDDIM {STEPS} steps, guidance, one sample"
        figure.text(left, 0.9, subtitle, fontsize=9, color=FAINT, va="top", linespacing=1.5)
        for axes, size in zip(panels[0], sizes, strict=True):
            own = sorted((row for row in rows if row["size"] == size), key=lambda row: row["window"])
            windows, times = [row["window"] for row in own], [row["round_ms"] for row in own]
            allowed = [row["steps"] * row["step_ms"] / row["rounds"] for row in own]
            axes.plot(windows, allowed, color=INK, lw=1.2, ls=(0, (4, 3)), label="as fast as sequential")
            axes.plot(windows, times, color=ACCENT, lw=1.8, marker="o", ms=5, label="a round")
            for row in own:
                axes.annotate(f"{row['speedup']:.2f}x", (row["window"], row["round_ms"]), (0, 7),
                              textcoords="offset points", fontsize=8.5, ha="center",
                              color=ACCENT if row["speedup"] > 1 else FAINT)  # fmt: skip
            axes.set_title(f"{_title(own[0])}, {own[0]['dtype']}", fontsize=9.5, loc="left", pad=8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(windows, labels=[str(window) for window in windows])
            axes.minorticks_off()
            axes.margins(x=0.12)
            axes.set_ylim(0, 1.18 * max([*times, *allowed]))
            axes.set_xlabel("window (states of a round)", fontsize=9.5)
            axes.tick_params(labelsize=9, length=0, pad=5)
            axes.grid(axis="y", color="#ececf0", lw=0.8)
            axes.set_axisbelow(True)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        panels[0][0].set_ylabel("milliseconds", fontsize=9.5)
        panels[0][0].legend(frameon=False, fontsize=8.5, loc="upper left")
        figure.savefig(path, dpi=160)
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
