"""picard_update beside eager torch, torch.compile and the op chain of the published method.

All compute one round of ParaDiGMS with DDPM steps (arXiv 2305.16317): A = 1, C = a - 1, B = b, S = sigma.
It is the one form of the recurrence that a cumulative sum solves, which is what the baselines live on; our op
solves any coefficients in the same time. The published code has single-step samplers only, hence no K = 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parasample.cli.bench.kernels.registry import DTYPES, Call, Case, Contender, Goal, Op, faces_to_time
from parasample.kernels import picard_update

# Errors of rows of states and of residuals. bfloat16 keeps 8 bits: eager torch rounds every drift to it.
TOLERANCES = {"f32": (1e-5, 1e-4), "bf16": (2e-2, 5e-2)}


def case(W: int, D: int, *, B: int = 1, K: int = 1, noise: bool = True, states: str = "f32",
         outputs: str = "f32", **role: bool) -> Case:  # fmt: skip
    """A case by what differs from float32, one sample, one term of history, with noise."""
    dtypes = states if states == outputs else f"{states} states, {outputs} outputs"
    names = {f"K{K}": K > 1, "no noise": not noise, dtypes.removeprefix("f32 states, "): dtypes != "f32"}
    kind = " ".join(name for name, differs in names.items() if differs)
    parts = [f"W{W}", f"B{B}" if B > 1 else "", f"D{D}", kind, "hot" if role.get("hot") else ""]
    label = " ".join(filter(None, parts))
    settings = {"W": W, "B": B, "D": D, "K": K, "noise": noise, "states": states, "outputs": outputs}
    return Case(label, kind or "f32", settings, D, **role)


LATENCY = case(16, 2**12, hot=True, compiled=True)
MIDDLE = case(32, 2**16, in_sweep=True, compiled=True)
WIDE = case(64, 2**16, outputs="bf16")
LARGE = case(64, 2**20, outputs="bf16", compiled=True)
SWEEP = [MIDDLE, *(case(32, 2**n, in_sweep=True, compiled=n in (12, 18)) for n in (8, 10, 12, 14, 18, 20))]
VARIANTS = [
    case(16, 2**16), case(64, 2**16), case(32, 2**14, B=4), case(32, 2**16, outputs="bf16"),
    case(32, 2**16, states="bf16", outputs="bf16"), case(32, 2**16, noise=False), case(32, 2**16, K=2),
]  # fmt: skip


@dataclass
class Arguments:
    """The op's arguments in its order, and what the published code computes its coefficients from."""

    op: tuple[Tensor | None, ...]
    alphas: Tensor  # [W+1] cumulative products of 1 - beta at the states, float32

    @property
    def states(self) -> Tensor:
        """x, [W+1, B, D]."""
        assert self.op[0] is not None
        return self.op[0]


@dataclass
class Round:
    """One round's tensors by name, its coefficients shaped [W, 1, 1] for each term of the history."""

    states: Tensor
    outputs: Tensor
    noise: Tensor | None
    anchor_coef: list[Tensor]
    output_coef: list[Tensor]
    noise_coef: Tensor
    scale: Tensor  # [W, 1]


class PicardUpdate(Op):
    """Registry entry."""

    name = "picard_update"
    sweep = "32 states of one sample, float32, with noise"
    goals = (
        Goal(MIDDLE.label, "eager", 5, "cpu", threads=2),
        Goal(MIDDLE.label, "share", 0.7, "cpu", threads=2),
        Goal(LARGE.label, "share", 0.9, "cuda"),
        Goal(WIDE.label, "share", 0.85, "cuda"),
        Goal(LARGE.label, "eager", 8, "cuda"),
        Goal(LARGE.label, "compile", 1.5, "cuda"),
        Goal(LATENCY.label, "us", 10, "cuda"),
    )

    def cases(self, device: str, quick: bool) -> list[Case]:
        if quick:
            return [LATENCY, MIDDLE, LARGE if device == "cuda" else WIDE]
        largest = [LARGE, case(32, 2**22, in_sweep=True)] if device == "cuda" else []
        return [LATENCY, WIDE, *largest[:1], *SWEEP, *VARIANTS, *largest[1:]]

    def arguments(self, case: Case, device: torch.device) -> Arguments:
        W, B, D, K = (case.settings[name] for name in "WBDK")
        generator = torch.Generator(device).manual_seed(0)

        def normal(rows: int, dtype: str) -> Tensor:
            return torch.randn(rows, B, D, generator=generator, device=device).to(DTYPES[dtype])

        states = normal(W + 1, case.settings["states"])
        outputs = normal(W, case.settings["outputs"])
        noise = normal(W, case.settings["outputs"]) if case.settings["noise"] else None
        alphas = torch.linspace(0.05, 0.98, W + 1, device=device)
        x0, x, sigma = ddpm_coefficients(alphas)
        a, b = x0 / alphas[:-1].sqrt() + x, -x0 * ((1 - alphas[:-1]) / alphas[:-1]).sqrt()
        # A second term as of a multistep sampler: half of the step before is taken back.
        weights = torch.tensor([[1.0], [1.5, -0.5]][K - 1], device=device)
        bounds = [torch.full((B,), row, device=device) for row in (0, W - 1, W)]
        one = torch.zeros(W, K, device=device)
        one[:, 0] = 1
        coefficients = (
            one,
            (a - 1)[:, None] * weights,
            b[:, None] * weights,
            sigma if noise is not None else torch.zeros_like(sigma),
            torch.ones(W, 2, device=device),
            torch.full((W + 1,), 1 / D, device=device),
        )
        return Arguments((states, states, outputs, noise, *coefficients, *bounds), alphas)

    def bytes_moved(self, case: Case) -> int:
        W, B, D = (case.settings[name] for name in "WBD")
        state, output = (DTYPES[case.settings[name]].itemsize for name in ("states", "outputs"))
        read = (W + 1) * state + W * output * (2 if case.settings["noise"] else 1)
        return B * D * (read + W * state)

    def flops(self, case: Case) -> int:
        W, B, D, K = (case.settings[name] for name in "WBDK")
        terms = 3 * K + int(case.settings["noise"])
        return W * B * D * (2 * terms + 3)  # and the change: subtract, square, add

    def contenders(self, case: Case, device: torch.device) -> list[Contender]:
        found = [*faces_to_time(self.name, device, _ours), Contender("eager", eager, "eager")]
        if case.settings["K"] == 1:
            found.append(Contender("published", published, "published"))
        if case.compiled:
            # Either may be the faster one, by device and size; static shapes, as suits them best.
            for name, update in (("compile, cumsum", cumulative), ("compile, rows", row_by_row)):
                compiled = torch.compile(update, dynamic=False)
                found.append(Contender(name, on_round(compiled), "compile"))
        return found

    def expected(self, arguments: Arguments) -> dict[str, Tensor]:
        def exact(tensor: Tensor | None) -> Tensor | None:
            return tensor.double() if tensor is not None and tensor.is_floating_point() else tensor

        states = arguments.states.double()
        exact_arguments: list[Any] = [states, states, *map(exact, arguments.op[2:])]
        residual = picard_update(*exact_arguments, face="reference")
        return {"states": states[1:], "residual": residual[1:, :, None]}

    def found(self, arguments: Arguments, returned: Any) -> dict[str, Tensor]:
        return {"states": arguments.states[1:], "residual": returned[-len(arguments.states) + 1 :, :, None]}

    def tolerances(self, case: Case) -> dict[str, float]:
        return dict(zip(("states", "residual"), TOLERANCES[case.settings["states"]], strict=True))


def ddpm_coefficients(alphas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the predicted data, the state and the noise in a DDPM step, each [W]."""
    now, then = alphas[:-1], alphas[1:]
    alpha = now / then
    beta, left = 1 - alpha, (1 - then) / (1 - now)
    return then.sqrt() * beta / (1 - now), alpha.sqrt() * left, (left * beta).sqrt()


def _ours(face: str) -> Callable[[Arguments], Call]:
    return lambda arguments: lambda: picard_update(*arguments.op, face=face)  # type: ignore[arg-type]


def _round(arguments: Arguments) -> Round:
    states, _, outputs, noise, _, anchor_coef, output_coef, noise_coef, _, scale, *_ = arguments.op
    assert states is not None and outputs is not None and scale is not None
    assert anchor_coef is not None and output_coef is not None and noise_coef is not None
    anchor, output = ([c[:, None, None] for c in table.unbind(1)] for table in (anchor_coef, output_coef))
    return Round(states, outputs, noise, anchor, output, noise_coef[:, None, None], scale[1:, None])


def eager(arguments: Arguments) -> Call:
    """In place, buffers allocated once, coefficients in the dtype of states, noise summed beforehand."""
    r = _round(arguments)
    states, dtype = r.states, r.states.dtype
    anchor_coef, output_coef = ([c.to(dtype) for c in columns] for columns in (r.anchor_coef, r.output_coef))
    noise_sum = None if r.noise is None else torch.cumsum(r.noise * r.noise_coef, 0).to(dtype)
    drift, scratch, new = (torch.empty_like(states[1:]) for _ in range(3))
    W = len(drift)

    def update() -> Tensor:
        torch.mul(states[:-1], anchor_coef[0], out=drift)
        for k in range(1, len(anchor_coef)):
            drift[k:].addcmul_(states[: W - k], anchor_coef[k][k:])
        for k, coef in enumerate(output_coef):
            drift[k:].addcmul_(r.outputs[: W - k], coef[k:])
        torch.cumsum(drift, 0, out=new)
        new.add_(states[0])
        if noise_sum is not None:
            new.add_(noise_sum)
        torch.sub(new, states[1:], out=scratch)
        change = scratch if dtype == torch.float32 else scratch.float()
        residual = change.square_().sum(-1).mul_(r.scale)
        states[1:].copy_(new)
        return residual

    return update


def published(arguments: Arguments) -> Call:
    """What diffusers' ParaDiGMS pipeline and its parallel DDPM scheduler launch per round, op by op.

    Coefficients are computed from the cumulative products in every round, both sums are taken over the
    window, and the host waits for the place where the window may slide to.
    """
    r = _round(arguments)
    states, W = r.states, len(r.outputs)
    inverse_variance = r.scale
    noise = None if r.noise is None else r.noise * r.noise_coef  # drawn with its variance before the loop

    def update() -> Tensor:
        now, then = (alphas.view(-1, 1, 1) for alphas in (arguments.alphas[:-1], arguments.alphas[1:]))
        beta_now, beta_then, alpha = 1 - now, 1 - then, now / then
        block = states[:-1]
        predicted = (block - beta_now**0.5 * r.outputs) / now**0.5
        previous = then**0.5 * (1 - alpha) / beta_now * predicted + alpha**0.5 * beta_then / beta_now * block
        delta = previous - block
        new = states[0][None] + torch.cumsum(delta, dim=0)
        if noise is not None:
            new = new + torch.cumsum(noise, dim=0)
        error = torch.linalg.norm(new - states[1:], dim=-1).pow(2)
        ratio = torch.nn.functional.pad(error * inverse_variance, (0, 0, 0, 1), value=1e9)
        torch.argmax(torch.max(ratio > 0.1, dim=1).values.int()).item()
        states[1:] = new
        return ratio[:W]

    return update


def cumulative(r: Round) -> Tensor:
    """The recurrence as one cumulative sum, for torch.compile."""
    drift = torch.zeros_like(r.states[1:], dtype=torch.float32)
    W = len(r.outputs)
    for k, (anchor, output) in enumerate(zip(r.anchor_coef, r.output_coef, strict=True)):
        term = anchor[k:] * r.states[: W - k] + output[k:] * r.outputs[: W - k]
        drift = drift + torch.nn.functional.pad(term, (0, 0, 0, 0, k, 0))
    if r.noise is not None:
        drift = drift + r.noise_coef * r.noise
    new = r.states[:1] + torch.cumsum(drift, 0)
    residual = (new - r.states[1:]).square().sum(-1) * r.scale
    r.states[1:] = new.to(r.states.dtype)
    return residual


def row_by_row(r: Round) -> Tensor:
    """The recurrence as the reference runs it, a loop over rows that torch.compile unrolls and fuses."""
    x = r.states[0].float()
    new, residuals = [], []
    for i in range(len(r.outputs)):
        for k in range(min(len(r.anchor_coef), i + 1)):
            x = x + r.anchor_coef[k][i] * r.states[i - k] + r.output_coef[k][i] * r.outputs[i - k]
        if r.noise is not None:
            x = x + r.noise_coef[i] * r.noise[i]
        new.append(x)
        residuals.append((x - r.states[i + 1]).square().sum(-1))
    r.states[1:] = torch.stack(new).to(r.states.dtype)
    return torch.stack(residuals) * r.scale


def on_round(update: Callable[[Round], Tensor]) -> Callable[[Arguments], Call]:
    """A contender that computes on a `Round`."""

    def build(arguments: Arguments) -> Call:
        r = _round(arguments)
        return lambda: update(r)

    return build


OP = PicardUpdate()
