"""Random picard_update calls, and the same recurrence written down a second time in plain Python."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from parasample.kernels import picard_update

# Relative tolerance per storage dtype: sums in another order (float32 and float64), one rounding when stored.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass
class Call:
    """The arguments of one picard_update call, in order."""

    states: Tensor
    anchors: Tensor
    outputs: Tensor
    noise: Tensor | None
    state_coef: Tensor
    anchor_coef: Tensor
    output_coef: Tensor
    noise_coef: Tensor
    x0_coef: Tensor
    residual_scale: Tensor
    begin: Tensor
    hold: Tensor
    end: Tensor
    weights: Tensor | None = None
    directions: Tensor | None = None

    def args(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def clone(self, device: str = "cpu") -> Call:
        """A copy that owns its memory; anchors stay the memory of states where they are."""
        # preserve_format keeps strided views strided
        copies = [None if t is None else t.clone().to(device) for t in self.args()]
        copy = Call(*copies)
        return replace(copy, anchors=copy.states) if self.anchors is self.states else copy


def make_call(
    W: int = 7,
    B: int = 3,
    D: int = 63,
    K: int = 1,
    dtype: torch.dtype = torch.float32,
    outputs_dtype: torch.dtype | None = None,
    noise: bool = True,
    alias: bool = False,
    rank: int = 0,
    seed: int = 0,
) -> Call:
    """W steps; each sample gets its own begin, hold and end. Coefficients keep the scan from growing.

    With rank > 0 outputs are corrected; every third weight is zero and its direction NaN.
    """
    g = torch.Generator().manual_seed(seed)
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    begin = torch.randint(0, W, (B,), generator=g)
    end = torch.randint(0, W + 1, (B,), generator=g)
    begin[0], end[0] = 0, W  # at least one sample runs over everything
    states = normal(W + 1, B, D).to(dtype)
    size = 0.9 / (3 * K)
    weights = directions = None
    if rank:
        unread = torch.arange(W * B * rank).reshape(W, B, rank) % 3 == 1
        weights = (normal(W, B, rank) / rank).masked_fill(unread, 0).to(real)
        directions = normal(W, B, rank, D).masked_fill(unread[..., None], torch.nan)
        directions = directions.to(outputs_dtype or dtype)
    return Call(
        states=states,
        anchors=states if alias else normal(W + 1, B, D).to(dtype),
        outputs=normal(W, B, D).to(outputs_dtype or dtype),
        noise=normal(W, B, D).to(outputs_dtype or dtype) if noise else None,
        state_coef=(size * normal(W, K).clamp(-1, 1)).to(real),
        anchor_coef=(size * normal(W, K).clamp(-1, 1)).to(real),
        output_coef=(size * normal(W, K).clamp(-1, 1)).to(real),
        # every third step has no noise
        noise_coef=(0.3 * normal(W) * (torch.arange(W) % 3 != 0)).to(real)
        if noise
        else torch.zeros(W, dtype=real),
        x0_coef=torch.stack([0.5 * normal(W).clamp(-1, 1), 1 + normal(W).abs()], 1).to(real),
        residual_scale=normal(W + 1).abs().to(real),
        begin=begin,
        hold=begin - 1 + torch.randint(0, W + 1, (B,), generator=g),
        end=end,
        weights=weights,
        directions=directions,
    )


def plain_python(call: Call) -> tuple[list, list]:
    """New states [T+1][B][D] and residual [T+1][B], one float64 at a time, from the definition."""
    x, xa, m = call.states.tolist(), call.anchors.tolist(), call.outputs.tolist()  # old values all
    z = None if call.noise is None else call.noise.tolist()
    A, C, M = call.state_coef.tolist(), call.anchor_coef.tolist(), call.output_coef.tolist()
    S, X0, scale = call.noise_coef.tolist(), call.x0_coef.tolist(), call.residual_scale.tolist()
    T, B, D = call.outputs.shape
    if call.weights is not None:
        w, direction = call.weights.tolist(), call.directions.tolist()
        for i, b, d, r in itertools.product(range(T), range(B), range(D), range(len(w[0][0]))):
            if w[i][b][r] != 0:
                m[i][b][d] += w[i][b][r] * direction[i][b][r][d]
    residual = [[math.inf] * B for _ in range(T + 1)]
    for b in range(B):
        first, hold, last = int(call.begin[b]), int(call.hold[b]), int(call.end[b])
        if first >= last:
            continue
        for i in range(first + 1, last + 1):
            residual[i][b] = 0.0
        for d in range(D):
            line = [x[i][b][d] for i in range(T + 1)]
            anchor = [xa[i][b][d] for i in range(T + 1)]
            output = [m[i][b][d] for i in range(T)]
            for i in range(first, last):
                if i > hold:
                    prediction = X0[hold][0] * anchor[hold] + X0[hold][1] * output[hold] if hold >= 0 else 0.0
                    anchor[i] = line[i]
                    output[i] = (prediction - X0[i][0] * line[i]) / X0[i][1]
                value = S[i] * z[i][b][d] if z is not None else 0.0
                for k in range(len(A[i])):
                    if i - k >= 0:
                        value += A[i][k] * line[i - k] + C[i][k] * anchor[i - k] + M[i][k] * output[i - k]
                line[i + 1] = value
            for i in range(first + 1, last + 1):
                x[i][b][d] = line[i]
                residual[i][b] += scale[i] * (line[i] - xa[i][b][d]) ** 2
    return x, residual


@pytest.fixture
def random_call() -> Callable[..., Call]:
    return make_call


@pytest.fixture
def reference() -> Callable[[Call], tuple[Tensor, Tensor]]:
    """(states, residual) of the reference; the call itself is left as it is."""

    def run(call: Call) -> tuple[Tensor, Tensor]:
        mine = call.clone()
        return mine.states, picard_update(*mine.args(), face="reference")

    return run


@pytest.fixture
def by_hand() -> Callable[[Call], tuple[list, list]]:
    return plain_python


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Compare (states, residual) pairs at the tolerance of the states' dtype; NaN and inf must be alike."""

    def compare(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
        tolerance = TOLERANCE[expected[0].dtype]
        torch.testing.assert_close(
            found[0].cpu(), expected[0].cpu(), rtol=tolerance, atol=tolerance, equal_nan=True
        )
        # A residual is a sum of squared differences: rounding of a state enters once per factor.
        torch.testing.assert_close(
            found[1].cpu(), expected[1].cpu(), rtol=4 * tolerance, atol=4 * tolerance, equal_nan=True
        )

    return compare
