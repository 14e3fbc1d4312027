"""How much faster is each fused kernel than the same update written in eager torch?

    python benchmarks/kernels.py [--threads 1 2] [--json]

The baseline is one round of ParaDiGMS as published (arXiv 2305.16317): drift of every step, prefix sum over
the window, noise sum added, squared change per state. It is given its own care: buffers allocated once,
in-place operators, the noise sum done beforehand. Contender and baseline alternate in one process, and no
time is shown for a kernel whose result is wrong. Times are 20th/50th/80th percentiles; the speedup compares
the 20th, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from parasample.kernels import faces, picard_update

SHAPES = [  # W, B, D, dtype, noise
    (32, 1, 65536, torch.float32, True),
    (32, 1, 65536, torch.float32, False),
    (32, 1, 65536, torch.bfloat16, True),
    (32, 1, 65536, torch.float16, True),
    (32, 4, 16384, torch.float32, True),
    (100, 1, 16384, torch.float32, True),
    (32, 2, 784, torch.float32, True),
    (100, 1, 32, torch.float32, True),
]


@dataclass
class Row:
    """Milliseconds per call: median of the alternating runs, with their 20th and 80th percentiles."""

    shape: str
    threads: int
    eager_ms: tuple[float, float, float]
    fused_ms: tuple[float, float, float]
    speedup: float
    gigabytes_per_s: float  # what the update must move at least, over the fused 20th percentile


def build(
    W: int, B: int, D: int, dtype: torch.dtype, noise: bool
) -> tuple[tuple, Callable, Callable, Tensor]:
    """(op arguments, eager round, reset, states) over the same tensors."""
    g = torch.Generator().manual_seed(0)
    begin_states = torch.randn(W + 1, B, D, generator=g).to(dtype)
    states = begin_states.clone()
    outputs = torch.randn(W, B, D, generator=g).to(dtype)
    z = torch.randn(W, B, D, generator=g).to(dtype) if noise else None
    a, b = 0.9 + 0.1 * torch.rand(W, generator=g), 0.1 * torch.rand(W, generator=g)
    s = 0.1 * torch.rand(W, generator=g) if noise else torch.zeros(W)
    scale = torch.full((W + 1,), 1 / D)
    one = torch.ones(W, 1)
    ranges = [torch.full((B,), value) for value in (0, W - 1, W)]
    args = (
        states,
        states,
        outputs,
        z,
        one,
        (a - 1)[:, None],
        b[:, None],
        s,
        torch.ones(W, 2),
        scale,
        *ranges,
    )

    row = [v[:, None, None].to(dtype) for v in (a - 1, b, s)]
    noise_sum = torch.cumsum(z * row[2], 0) if z is not None else None
    drift, scratch, new = (torch.empty(W, B, D, dtype=dtype) for _ in range(3))

    def eager() -> Tensor:
        torch.mul(states[:-1], row[0], out=drift)
        torch.mul(outputs, row[1], out=scratch)
        drift.add_(scratch)
        torch.cumsum(drift, 0, out=new)
        new.add_(states[0])
        if noise_sum is not None:
            new.add_(noise_sum)
        torch.sub(new, states[1:], out=scratch)
        residual = scratch.float().square_().sum(-1) if dtype != torch.float32 else scratch.square_().sum(-1)
        states[1:].copy_(new)
        return residual.mul_(scale[1:, None])

    def reset() -> None:
        states.copy_(begin_states)

    return args, eager, reset, states


def check(args: tuple, reset: Callable, states: Tensor) -> None:
    """The fused result equals the reference, or nothing is timed."""
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[states.dtype]
    reset()
    expected_residual = picard_update(*args, face="reference")
    expected = states.clone()
    reset()
    residual = picard_update(*args)
    torch.testing.assert_close(states, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(residual, expected_residual, rtol=4 * tolerance, atol=4 * tolerance)


def percentiles(times: list[float]) -> tuple[float, float, float]:
    cuts = statistics.quantiles(times, n=10)
    return tuple(round(1e3 * t, 4) for t in (cuts[1], statistics.median(times), cuts[7]))  # type: ignore[return-value]


def measure(shape: tuple, threads: int, budget_s: float) -> Row:
    args, eager, reset, states = build(*shape)
    check(args, reset, states)
    times: dict[str, list[float]] = {"eager": [], "fused": []}
    runs = {"eager": eager, "fused": lambda: picard_update(*args)}
    stop = time.perf_counter() + budget_s
    while time.perf_counter() < stop or len(times["fused"]) < 10:
        for name, run in runs.items():
            reset()
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    W, B, D, dtype, noise = shape
    streams = 4 if noise else 3  # read states, outputs, noise; write states
    eager_ms, fused_ms = percentiles(times["eager"]), percentiles(times["fused"])
    label = f"W{W}-B{B}-D{D}-{str(dtype).removeprefix('torch.')}{'-noise' if noise else ''}"
    moved = streams * W * B * D * states.element_size()
    speedup = round(eager_ms[0] / fused_ms[0], 2)
    return Row(label, threads, eager_ms, fused_ms, speedup, round(moved / fused_ms[0] / 1e6, 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each row")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()
    face = next(status for status in faces() if status.face == "cpu")
    if not options.json:
        print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {face.reason}")
    for threads in options.threads:
        torch.set_num_threads(threads)
        for shape in SHAPES:
            row = measure(shape, threads, options.seconds)
            if options.json:
                print(json.dumps(asdict(row)))
            else:
                times = "  ".join(
                    f"{name} {ms[0]:.3f}/{ms[1]:.3f}/{ms[2]:.3f} ms"
                    for name, ms in (("eager", row.eager_ms), ("fused", row.fused_ms))
                )
                print(f"{row.shape:30} {threads} thr  {times}  x{row.speedup}  {row.gigabytes_per_s} GB/s")


if __name__ == "__main__":
    main()
