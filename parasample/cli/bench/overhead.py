"""Everything but the model as a share of a round, for the wrapped pipeline and for ps.sample.

A round lasts from one call of the model to the next (the last one until the call returns): scan, residuals,
controller, conditioning, guidance, the pipeline's own loop. Nothing is left out but the set-up of a call.
"its own loop" is what the pipeline's Python between two calls of the model takes when sampling sequentially,
for as many steps as a round finishes: it is there with or without parasample.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import parasample as ps
from parasample.bridge.load import SAMPLERS, set_sampler
from parasample.cli.bench.results import Results, open_pipeline, spread
from parasample.cli.sampling import Case, call_pipeline, sample_parallel, sample_sequential
from parasample.cli.text import progress

EXAMPLE = "overhead"
CASES = (("ddim", 100, "full"), ("ddim", 100, 16), ("ddpm", 100, "full"), ("dpm++", 50, "full"))
COLUMNS = {
    "where": "{where}", "sampler": "{title} {steps}", "window": "{window}", "rounds": "{rounds}",
    "round ms": "{round_ms:.2f}", "not the model, p50": "{share:.1%}", "p80": "{share_p80:.1%}",
    "its own loop": "{loop_share:.1%}",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=5, help="calls per row (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measure every row that is not in the file yet, and show them all."""
    repeats = 2 if args.quick else args.repeats
    results, pipe = Results("overhead", args), open_pipeline(args)
    call_pipeline(pipe, ["a sneaker"], 2, args.guidance, [0])
    cases = CASES[:2] if args.quick else CASES
    with progress(2 * len(cases), "overhead", "row") as bar:
        for sampler, steps, window in cases:
            case = Case(sampler, steps, ps.Picard(window=window))  # type: ignore[arg-type]
            for where, measure in (("pipeline", _pipeline), ("ps.sample", _sample)):
                settings = {
                    "bench": "overhead", "where": where, "sampler": sampler, "title": SAMPLERS[sampler][0],
                    "steps": steps, "window": window, "guidance": args.guidance, "repeats": repeats,
                }  # fmt: skip
                if results.find(settings) is None:
                    figures = _figures([measure(pipe, case, args.guidance) for _ in range(repeats)])
                    loop_ms = _loop_ms(pipe, case, args.guidance) if where == "pipeline" else 0.0
                    share = loop_ms * steps / figures["rounds"] / figures["round_ms"]
                    results.add(settings, figures | {"loop_ms": loop_ms, "loop_share": share})
                bar.update()
    results.show(COLUMNS, args.json)
    return 0


class Stopwatch:
    """Notes when calls of a function begin and end."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.begun.append(_now())
            try:
                return function(*args, **kwargs)
            finally:
                self.ended.append(_now())

        return timed

    def rounds(self, end: float) -> list[tuple[float, float]]:
        """(seconds, seconds outside the model) of every round; the last one lasts until `end`."""
        until = [*self.begun[1:], end]
        pairs = zip(self.begun, self.ended, until, strict=True)
        return [(after - begun, after - ended) for begun, ended, after in pairs]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _pipeline(pipe: Any, case: Case, guidance: float) -> list[tuple[float, float]]:
    return _watched(pipe, lambda: sample_parallel(pipe, case, ["a sneaker"], guidance, [0]))


def _loop_ms(pipe: Any, case: Case, guidance: float) -> float:
    """Milliseconds outside the model of a step of sequential sampling, median."""
    steps = _watched(pipe, lambda: sample_sequential(pipe, case, ["a sneaker"], guidance, [0]))
    return 1e3 * statistics.median(outside for _, outside in steps)


def _watched(pipe: Any, call: Callable[[], object]) -> list[tuple[float, float]]:
    watch = Stopwatch()
    pipe.unet.forward = watch.around(pipe.unet.forward)
    try:
        call()
    finally:
        del pipe.unet.forward
    return watch.rounds(_now())[1:]  # the first is the pipeline's first step, and reads the scheduler


@torch.no_grad()
def _sample(pipe: Any, case: Case, guidance: float) -> list[tuple[float, float]]:
    set_sampler(pipe, case.sampler, case.steps)
    conditional, unconditional = pipe.encode_prompt("a sneaker", pipe.device, 1, guidance > 1)
    watch = Stopwatch()

    def model(x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        if unconditional is None:
            return pipe.unet(x, t, encoder_hidden_states=prompt).sample
        context = torch.cat([unconditional.expand(len(x), -1, -1), prompt])
        without, with_prompt = pipe.unet(x.repeat(2, 1, 1, 1), t.repeat(2), context).sample.chunk(2)
        return without + guidance * (with_prompt - without)

    start = torch.randn(1, *_latent_shape(pipe), generator=torch.Generator().manual_seed(0)).to(pipe.device)
    ps.sample(
        watch.around(model), pipe.scheduler, start * pipe.scheduler.init_noise_sigma, case.method,
        num_inference_steps=case.steps, model_kwargs={"prompt": conditional},
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return watch.rounds(_now())[1:]


def _latent_shape(pipe: Any) -> tuple[int, int, int]:
    size = pipe.unet.config.sample_size
    return pipe.unet.config.in_channels, size, size


def _figures(calls: list[list[tuple[float, float]]]) -> dict[str, Any]:
    rounds = [pair for call in calls for pair in call]
    shares = [outside / seconds for seconds, outside in rounds]
    milliseconds = [1e3 * seconds for seconds, _ in rounds]
    return {"rounds": len(calls[0]) + 1} | spread(shares, "share") | spread(milliseconds, "round_ms")
