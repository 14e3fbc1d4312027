"""gather_inputs in plain torch: the truth that every fast version is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_inputs_reference(
    states: Tensor, steps: Tensor, samples: Tensor, scale: Tensor | None, copies: int, dtype: torch.dtype
) -> Tensor:
    """Gather, scale, cast and repeat; see `gather_inputs` for the arguments."""
    real = torch.float64 if states.dtype == torch.float64 else torch.float32
    inputs = states[steps, samples].to(real)
    if scale is not None:
        inputs = inputs * scale[steps, None]
    return inputs.to(dtype).repeat(copies, 1)
