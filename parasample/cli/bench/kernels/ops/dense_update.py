"""dense_update beside eager torch and torch.compile, on dense lower-triangular rows of outputs.

The case is a predictor-corrector written out (UniPC, arXiv 2302.04867): x[i+1] = a x[i] + sum over j <= i of
B[i,j] m[j] + S[i] z[i]. The published parallel method knows single-step samplers only: it has no chain here.
The reference solves its system per sample from numbers it reads on the host, which torch.compile cannot take
as one graph: what is compiled is the eager contender.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parasample.cli.bench.kernels.registry import DTYPES, Call, Case, Contender, Op, faces_to_time
from parasample.kernels import dense_update

# Errors of rows of states and of residuals; eager torch multiplies bfloat16 outputs in bfloat16.
TOLERANCES = {"f32": (1e-5, 1e-4), "bf16": (2e-2, 5e-2)}
Arguments = tuple[Tensor | None, ...]


def case(W: int, D: int, *, B: int = 1, noise: bool = True, outputs: str = "f32", **role: bool) -> Case:
    """A case by its window of dense rows, and what differs from float32, one sample, with noise."""
    names = {f"B{B}": B > 1, "no noise": not noise, outputs: outputs != "f32"}
    kind = " ".join([f"W{W}", *(name for name, differs in names.items() if differs)])
    label = " ".join(filter(None, [kind, f"D{D}", "hot" if role.get("hot") else ""]))
    settings = {"W": W, "B": B, "D": D, "noise": noise, "outputs": outputs}
    return Case(label, kind, settings, D, **role)


LATENCY = case(16, 2**12, hot=True, compiled=True)
MIDDLE = case(32, 2**16, in_sweep=True, compiled=True)
HALF = case(32, 2**16, outputs="bf16")
SWEEP = [MIDDLE, *(case(32, 2**n, in_sweep=True, compiled=n == 12) for n in (8, 10, 12, 14, 18))]
VARIANTS = [case(16, 2**16), case(64, 2**16), case(32, 2**14, B=4), case(32, 2**16, noise=False)]


class DenseUpdate(Op):
    """Registry entry."""

    name = "dense_update"
    sweep = "32 dense rows of one sample, float32, with noise"

    def cases(self, device: str, quick: bool) -> list[Case]:
        if quick:
            return [LATENCY, MIDDLE, HALF]
        return [LATENCY, HALF, *SWEEP, *VARIANTS, *([case(32, 2**20)] if device == "cuda" else [])]

    def arguments(self, case: Case, device: torch.device) -> Arguments:
        W, B, D = (case.settings[name] for name in "WBD")
        generator = torch.Generator(device).manual_seed(0)

        def normal(rows: int, dtype: str = "f32") -> Tensor:
            return torch.randn(rows, B, D, generator=generator, device=device).to(DTYPES[dtype])

        states, outputs = normal(W + 1), normal(W, case.settings["outputs"])
        noise = normal(W) if case.settings["noise"] else None
        lags = torch.arange(W, device=device)
        # Alternating, and smaller the further back, as a solver's weights are.
        weights = ((-1.0) ** lags / (1 + lags)).expand(W, W).contiguous()
        decay = torch.zeros(W, W, device=device)
        decay[:, 0] = 0.9
        bounds = [torch.full((B,), row, device=device) for row in (0, W - 1, W)]
        coefficients = (
            decay,
            torch.zeros(W, W, device=device),
            weights,
            torch.full((W,), 0.1 if noise is not None else 0.0, device=device),
            torch.ones(W, 2, device=device),
            torch.full((W + 1,), 1 / D, device=device),
        )
        return (states, states, outputs, noise, *coefficients, *bounds)

    def bytes_moved(self, case: Case) -> int:
        W, B, D = (case.settings[name] for name in "WBD")
        row = 4 + DTYPES[case.settings["outputs"]].itemsize + (4 if case.settings["noise"] else 0)
        return B * D * (W * row + (W + 1) * 4)

    def flops(self, case: Case) -> int:
        W, B, D = (case.settings[name] for name in "WBD")
        terms = W * (W + 1) // 2 + W * (2 if case.settings["noise"] else 1)
        return B * D * (2 * terms + 3 * W)  # and the change: subtract, square, add

    def contenders(self, case: Case, device: torch.device) -> list[Contender]:
        ours = faces_to_time(self.name, device, lambda face: functools.partial(_call, face=face))
        found = [*ours, Contender("eager", functools.partial(_solved, prepare=_in_buffers), "eager")]
        if case.compiled:
            compiled = torch.compile(solve, dynamic=False)
            build = functools.partial(_solved, prepare=lambda *arguments: lambda: compiled(*arguments))
            found.append(Contender("compile", build, "compile"))
        return found

    def expected(self, arguments: Arguments) -> dict[str, Tensor]:
        exact: list[Any] = [
            tensor.double() if tensor is not None and tensor.is_floating_point() else tensor
            for tensor in arguments
        ]
        exact[1] = exact[0]
        residual = dense_update(*exact, face="reference")
        return {"states": exact[0][1:], "residual": residual[1:, :, None]}

    def found(self, arguments: Arguments, returned: Any) -> dict[str, Tensor]:
        states = arguments[0]
        assert states is not None
        return {"states": states[1:], "residual": returned[-len(states) + 1 :, :, None]}

    def tolerances(self, case: Case) -> dict[str, float]:
        return dict(zip(("states", "residual"), TOLERANCES[case.settings["outputs"]], strict=True))


def _call(arguments: Arguments, face: str) -> Call:
    return lambda: dense_update(*arguments, face=face)  # type: ignore[arg-type]


def _solved(arguments: Arguments, prepare: Callable[..., Call]) -> Call:
    """The system's inverse is taken beforehand, which leaves one matrix product over outputs per round.

    Outputs are multiplied in their own dtype on CUDA and in float32 on a CPU: each is the faster there.
    """
    states, _, outputs, noise, decay, _, weights, noise_coef, _, scale, *_ = arguments
    assert states is not None and outputs is not None and scale is not None
    assert decay is not None and weights is not None and noise_coef is not None
    W = len(outputs)
    system = torch.eye(W, dtype=torch.float64, device=states.device)
    system.diagonal(-1).copy_(-decay[1:, 0])
    inverse = torch.linalg.inv(system)
    lag = torch.arange(W, device=states.device)
    lag = lag[:, None] - lag
    rows = torch.where(lag >= 0, weights.double().gather(1, lag.clamp(min=0)), 0.0)
    of_outputs = (inverse @ rows).to(outputs.dtype if outputs.is_cuda else states.dtype)
    of_noise = (inverse * noise_coef).float()
    of_start = (inverse[:, :1] * decay[0, 0]).float()
    matrices = (states, outputs, noise)
    flat = tuple(None if tensor is None else tensor.flatten(1) for tensor in matrices)
    return prepare(states, *flat, of_start, of_outputs, of_noise, scale[1:, None])


def solve(
    states: Tensor,
    start: Tensor,
    outputs: Tensor,
    noise: Tensor | None,
    of_start: Tensor,
    of_outputs: Tensor,
    of_noise: Tensor,
    scale: Tensor,
) -> Tensor:
    """New states [W, B D] as products with the known coefficients, stored in `states`; the residual."""
    new = (of_outputs @ outputs.to(of_outputs.dtype)).to(states.dtype)
    if noise is not None:
        new = torch.addmm(new, of_noise, noise)
    new = torch.addcmul(new, of_start, start[:1]).view_as(states[1:])
    residual = (new - states[1:]).square().sum(-1) * scale
    states[1:] = new
    return residual


def _in_buffers(
    states: Tensor,
    start: Tensor,
    outputs: Tensor,
    noise: Tensor | None,
    of_start: Tensor,
    of_outputs: Tensor,
    of_noise: Tensor,
    scale: Tensor,
) -> Call:
    """`solve` for eager torch, in buffers allocated once."""
    new, change = torch.empty_like(start[1:]), torch.empty_like(states[1:])
    converted = torch.empty_like(outputs, dtype=of_outputs.dtype)
    product = torch.empty_like(new, dtype=of_outputs.dtype)

    def update() -> Tensor:
        same = outputs.dtype == of_outputs.dtype
        torch.mm(of_outputs, outputs if same else converted.copy_(outputs), out=product)
        if noise is None:
            new.copy_(product)
        else:
            torch.mm(of_noise, noise, out=new)
            new.add_(product)
        new.addcmul_(of_start, start[:1])
        torch.sub(new.view_as(change), states[1:], out=change)
        residual = change.square_().sum(-1).mul_(scale)
        states[1:].copy_(new.view_as(change))
        return residual

    return update


OP = DenseUpdate()
