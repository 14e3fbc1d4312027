"""drift_aggregate beside eager torch, torch.compile of the reference and what pipelines launch for the same.

The largest case is all that the op can do: guidance, its rescaling, and epsilon converted to a clipped data
prediction, as a DDPM round of a guided pipeline needs it. Pipelines have no name for a mixture of clipped and
unclipped predictions (DDIM): there the published chain does not take part.

On a CPU, memory of 32 MiB or more comes from the system page by page in every call that allocates it: that is
what sizes from 2^18 on measure of contenders that return new tensors; eager torch has its buffers already.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from parasample.cli.bench.kernels.registry import DTYPES, Call, Case, Contender, Op, faces_to_time
from parasample.kernels import drift_aggregate
from parasample.kernels.drift_aggregate.reference import drift_aggregate_reference

TOLERANCES = {"f32": 1e-5, "bf16": 1e-2}  # of outputs; eager torch guides bfloat16 in bfloat16
GUIDANCE, RESCALE = 5.0, 0.7
Arguments = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor]


def case(n: int, D: int, *, parts: str = "guided clipped", outputs: str = "f32", **role: bool) -> Case:
    """A case by its states n, what the op does beside converting, and the dtype of model outputs."""
    kind = " ".join(filter(None, [parts or "converted", outputs if outputs != "f32" else ""]))
    label = " ".join(filter(None, [f"n{n} D{D}", kind, "hot" if role.get("hot") else ""]))
    return Case(label, kind, {"n": n, "D": D, "parts": parts, "outputs": outputs}, D, **role)


LATENCY = case(16, 2**7, parts="clipped", hot=True, compiled=True)
MIDDLE = case(32, 2**16, in_sweep=True, compiled=True)
RESCALED = case(32, 2**16, parts="guided rescaled clipped", outputs="bf16", compiled=True)
SWEEP = [MIDDLE, *(case(32, 2**n, in_sweep=True, compiled=n in (12, 18)) for n in (8, 10, 12, 14, 18))]
VARIANTS = [
    case(32, 2**16, parts=""), case(32, 2**16, parts="clipped"), case(32, 2**16, parts="clipped mixed"),
    case(32, 2**16, parts="clipped", outputs="bf16"), case(32, 2**16, outputs="bf16"),
]  # fmt: skip


class DriftAggregate(Op):
    """Registry entry."""

    name = "drift_aggregate"
    sweep = "32 states, guided and clipped, float32"

    def cases(self, device: str, quick: bool) -> list[Case]:
        if quick:
            return [LATENCY, MIDDLE, RESCALED]
        large = [case(32, 2**20, in_sweep=True), case(64, 2**20, outputs="bf16")] if device == "cuda" else []
        return [LATENCY, RESCALED, *SWEEP, *VARIANTS, *large]

    def arguments(self, case: Case, device: torch.device) -> Arguments:
        n, D, parts = (case.settings[name] for name in ("n", "D", "parts"))
        generator = torch.Generator(device).manual_seed(0)

        def normal(rows: int, dtype: str = "f32") -> Tensor:
            return torch.randn(rows, D, generator=generator, device=device).to(DTYPES[dtype])

        guided = "guided" in parts
        outputs = normal(2 * n if guided else n, case.settings["outputs"])
        full = functools.partial(torch.full, (n,), device=device)
        alpha = torch.linspace(0.3, 0.98, n, device=device)  # cumulative products of 1 - beta
        bound = full(1.0 if "clipped" in parts else torch.inf)
        # Of clip(D) and of D in DDIM's step, in the proportion of an early one.
        of_data, of_cut = (full(1.0), full(-0.5)) if "mixed" in parts else (full(1.0), full(0.0))
        conversion = (
            alpha**-0.5,
            -((1 - alpha) ** 0.5) / alpha**0.5,
            full(0.0),
            of_data,
            of_cut,
            -bound,
            bound,
        )
        return (
            outputs[-n:],
            outputs[:n] if guided else None,
            full(GUIDANCE) if guided else None,
            full(RESCALE) if "rescaled" in parts else None,
            normal(n),
            torch.stack(conversion, 1),
        )

    def bytes_moved(self, case: Case) -> int:
        n, D, parts = (case.settings[name] for name in ("n", "D", "parts"))
        halves = 2 if "guided" in parts else 1
        return n * D * (halves * DTYPES[case.settings["outputs"]].itemsize + 8)  # and states, and results

    def flops(self, case: Case) -> int:
        n, D, parts = (case.settings[name] for name in ("n", "D", "parts"))
        each = {"guided": 3, "rescaled": 1 + 2 * 4, "clipped": 2, "mixed": 3}  # two sums of two deviations
        return n * D * (6 + sum(each[part] for part in parts.split()))

    def contenders(self, case: Case, device: torch.device) -> list[Contender]:
        ours = faces_to_time(self.name, device, lambda face: functools.partial(_call, face=face))
        found = [*ours, Contender("eager", eager, "eager")]
        if "mixed" not in case.settings["parts"]:
            found.append(Contender("published", published, "published"))
        if case.compiled:
            compiled = torch.compile(drift_aggregate_reference, dynamic=False)
            found.append(Contender("compile", lambda arguments: lambda: compiled(*arguments), "compile"))
        return found

    def expected(self, arguments: Arguments) -> dict[str, Tensor]:
        exact: list[Any] = [None if tensor is None else tensor.double() for tensor in arguments]
        return {"outputs": drift_aggregate(*exact, face="reference")}

    def found(self, arguments: Arguments, returned: Any) -> dict[str, Tensor]:
        return {"outputs": returned}

    def tolerances(self, case: Case) -> dict[str, float]:
        return {"outputs": TOLERANCES[case.settings["outputs"]]}


def _call(arguments: Arguments, face: str) -> Call:
    return lambda: drift_aggregate(*arguments, face=face)


def eager(arguments: Arguments) -> Call:
    """In place, buffers allocated once, columns of coefficients taken beforehand."""
    conditional, unconditional, guidance, rescale, states, conversion = arguments
    p, q, _, of_data, of_cut, low, high = conversion[..., None].unbind(1)
    mixed = bool(of_cut.any())
    guided = torch.empty_like(conditional)
    data, result = torch.empty_like(states), torch.empty_like(states)
    weight = None if guidance is None else guidance[:, None].to(conditional.dtype)

    def update() -> Tensor:
        m = conditional
        if unconditional is not None and weight is not None:
            m = torch.lerp(unconditional, conditional, weight, out=guided)
        if rescale is not None:
            ratio = conditional.std(1, keepdim=True).float() / m.std(1, keepdim=True).float()
            m.mul_(rescale[:, None] * ratio + (1 - rescale[:, None]))
        torch.mul(m, q, out=data)
        data.addcmul_(states, p)
        torch.clamp(data, low, high, out=result)
        if mixed:
            data.sub_(result).mul_(of_cut)
            return result.mul_(of_data).add_(data)
        return result

    return update


def published(arguments: Arguments) -> Call:
    """What diffusers' pipelines and their DDPM scheduler launch for these outputs, op by op.

    Rescaling is section 3.4 of arXiv 2305.08891, the conversion equation 15 of arXiv 2006.11239; bounds are
    numbers there, the same for all states.
    """
    conditional, unconditional, guidance, rescale, states, conversion = arguments
    alphas = (conversion[:, 0] ** -2)[:, None]
    low, high = float(conversion[0, 5]), float(conversion[0, 6])
    weight = None if guidance is None else float(guidance[0])
    phi = None if rescale is None else float(rescale[0])

    def update() -> Tensor:
        m = conditional
        if unconditional is not None and weight is not None:
            m = unconditional + weight * (conditional - unconditional)
        if phi is not None:
            rescaled = m * (conditional.std(dim=1, keepdim=True) / m.std(dim=1, keepdim=True))
            m = phi * rescaled + (1 - phi) * m
        data = (states - (1 - alphas) ** 0.5 * m) / alphas**0.5
        return data.clamp(low, high) if high < float("inf") else data

    return update


OP = DriftAggregate()
