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
    in_coef: Tensor | None,
    out_coef: Tensor | None,
    clip: Tensor | None,
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
    if states is None or in_coef is None or out_coef is None:
        return m
    x = states.to(real)
    data = in_coef[:, :1] * x + in_coef[:, 1:] * m
    if clip is not None:
        data = torch.clamp(data, -clip[:, None], clip[:, None])
    return out_coef[:, :1] * x + out_coef[:, 1:] * data
