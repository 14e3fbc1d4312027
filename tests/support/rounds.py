"""Random calls of drift_aggregate and gather_inputs, and what their tests share."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16"}
DRIFT_ARGUMENTS = (
    "conditional",
    "unconditional",
    "guidance",
    "rescale",
    "states",
    "conversion",
)
FACES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.gpu),
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(
            not INTERPRETED and not torch.cuda.is_available(),
            reason="triton needs CUDA or the interpreter; test_triton_interpreted.py runs these interpreted",
        ),
    ),
]


def device_of(face: str) -> str:
    return "cuda" if face == "cuda" or (face == "triton" and not INTERPRETED) else "cpu"


def drift_call(
    n: int = 4,
    D: int = 63,
    dtype: torch.dtype = torch.float32,
    states_dtype: torch.dtype | None = torch.float32,
    parts: str = "guided rescaled clipped",
    seed: int = 0,
) -> dict[str, Tensor | None]:
    """Arguments by name; both halves are views of one [2n, D] output. states_dtype None: no conversion."""
    g = torch.Generator().manual_seed(seed)
    real = torch.float64 if torch.float64 in (dtype, states_dtype) else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    outputs = (normal(2 * n, D) + 0.3).to(dtype)
    call: dict[str, Tensor | None] = dict.fromkeys(DRIFT_ARGUMENTS)
    call["conditional"] = outputs[n:]
    if "guided" in parts:
        call["unconditional"] = outputs[:n]
        call["guidance"] = (1 + 6 * torch.rand(n, generator=g)).to(real)
    if "rescaled" in parts:
        rescale = torch.rand(n, generator=g)
        rescale[::3] = 0  # rows that are left alone
        call["rescale"] = rescale.to(real) if n > 1 else torch.full((n,), 0.7, dtype=real)
    if states_dtype is not None:
        call["states"] = normal(n, D).to(states_dtype)
        conversion = normal(n, 7)  # (p, q, a, b, c, low, high)
        bounds = torch.rand(n, 2, generator=g, dtype=torch.float64)
        conversion[:, 5], conversion[:, 6] = -0.3 - bounds[:, 0], 0.1 + bounds[:, 1]
        conversion[::2, 4] = 0  # rows that step along the clipped prediction alone
        conversion[1::5, 5], conversion[2::5, 6] = -torch.inf, torch.inf  # bounded on one side
        unbounded = slice(3, None, 5) if "clipped" in parts else slice(None)
        conversion[unbounded, 5], conversion[unbounded, 6] = -torch.inf, torch.inf
        call["conversion"] = conversion.to(real)
    return call


def on(device: str, call: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if tensor is None else tensor.to(device) for name, tensor in call.items()}


def gather_call(
    T: int = 9,
    B: int = 3,
    D: int = 63,
    n: int = 7,
    dtype: torch.dtype = torch.float32,
    scaled: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """states, steps, samples and scale; states are strided in both outer dimensions."""
    g = torch.Generator().manual_seed(seed)
    states = (
        torch.randn(B, T + 1, D + 3, generator=g, dtype=torch.float64).to(dtype)[:, :, :D].transpose(0, 1)
    )
    steps = torch.randint(0, T, (n,), generator=g)
    samples = torch.randint(0, B, (n,), generator=g)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.rand(T, generator=g).to(real) if scaled else None
    return states, steps, samples, scale
