"""ClippedOutput is what the scheduler's clip makes of the data prediction, in one pass between bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parasample.kernels import native
from parasample.runtime.clipping import ClippedOutput

T = 6
BOUNDS = [(-1.0, 1.0), (-0.4, 1.5), (-math.inf, 0.5), (0.0, math.inf)]


def make(clip: Any, mixes: bool, seed: int = 0) -> ClippedOutput:
    generator = torch.Generator().manual_seed(seed)
    p, q, clipped = torch.randn(3, T, generator=generator, dtype=torch.float64)
    unclipped = 1 - clipped if mixes else torch.zeros_like(clipped)
    return ClippedOutput(p, q, clipped if mixes else torch.ones_like(clipped), unclipped, clip)


def by_definition(found: ClippedOutput, output: Any, state: Any, steps: Any, clip: Any) -> torch.Tensor:
    tables = found.x0_state, found.x0_output, found.clipped, found.unclipped
    p, q, clipped, unclipped = (table[steps].view(-1, 1, 1) for table in tables)
    prediction = p * state.double() + q * output.double()
    return clipped * clip(prediction) + unclipped * prediction


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bounds_are_the_definition(bounds: Any, mixes: bool, dtype: torch.dtype) -> None:
    steps = torch.tensor([3, 0, 5, 3, 1])
    generator = torch.Generator().manual_seed(1)
    output = torch.randn(7, 5, 9, generator=generator).to(dtype).transpose(0, 1)  # [5, 7, 9], strided
    state = torch.randn(5, 7, 9, generator=generator)
    convert = make(bounds, mixes)
    found = convert(output, state, steps)
    expected = by_definition(convert, output, state, steps, lambda prediction: prediction.clamp(*bounds))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mixes", [False, True])
def test_a_function_and_bounds_agree(mixes: bool) -> None:
    output, state = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(2))
    steps = torch.arange(4)
    bounded, called = make((-0.5, 0.5), mixes), make(lambda prediction: prediction.clamp(-0.5, 0.5), mixes)
    torch.testing.assert_close(bounded(output, state, steps), called(output, state, steps))


class Operators(TorchDispatchMode):
    """Names of what runs on memory; views cost nothing and are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.found.append(func._schema.name.rpartition("::")[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mixes", [False, True])
def test_clipping_between_bounds_is_one_pass(mixes: bool) -> None:
    if not native.ops_library().loaded:
        pytest.skip("the reference is a chain of operators; the fused op is not built here")
    convert, output, steps = make((-1.0, 1.0), mixes), torch.ones(3, 4, 5), torch.arange(3)
    convert(output, output, steps)  # copies the coefficients once
    with Operators() as operators:
        convert(output.half(), output, steps)
    assert operators.found == ["_to_copy", "index_select", "drift_aggregate"]  # the first is .half() itself
