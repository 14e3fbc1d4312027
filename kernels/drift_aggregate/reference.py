"""drift_aggregate in plain torch: the truth that every fast version is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def drift_aggregate_reference(
    conditional: Tensor,
    unconditional: Tensor | None,
    guidance: Tensor | None,
    rescale: Tensor | None,
    states: Tensor | None,
    conversion: Tensor | None,
) -> Tensor:
    """Guide, rescale and convert n model outputs; see `drift_aggregate` for the arguments."""
    given = [tensor.dtype for tensor in (conditional, unconditional, states) if tensor is not None]
    real = torch.float64 if torch.float64 in given else torch.float32
    m = conditional.to(real, copy=True)
    if unconditional is not None and guidance is not None:
        conditional, unconditional = m, unconditional.to(real)
        m = unconditional + guidance[:, None] * (conditional - unconditional)
        if rescale is not None:
            phi = rescale[:, None]
            ratio = conditional.std(1, keepdim=True) / m.std(1, keepdim=True)
            m = torch.where(phi == 0, m, phi * m * ratio + (1 - phi) * m)
    if states is None or conversion is None:
        return m
    x = states.to(real)
    in_x, in_m, out_x, out_data, out_cut, low, high = conversion[..., None].unbind(1)  # [n, 1] each
    data = in_x * x + in_m * m
    clipped = torch.clamp(data, low, high)
    cut = torch.where(out_cut == 0, 0.0, out_cut * (data - clipped))
    return out_x * x + out_data * clipped + cut
