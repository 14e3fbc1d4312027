"""The argument checks of drift_aggregate for the faces in Python; the native op has the same in C++."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_arguments(
    conditional: Tensor,
    unconditional: Tensor | None,
    guidance: Tensor | None,
    rescale: Tensor | None,
    states: Tensor | None,
    conversion: Tensor | None,
) -> None:
    """Raise ValueError (expected, found, remedy) unless the arguments are what `drift_aggregate` asks for."""
    if conditional.dim() != 2:
        _fail("conditional", "shape [n, D]", list(conditional.shape), "flatten each output to D elements")
    if conditional.dtype not in FLOATS:
        expected = "a dtype of float32, float64, float16, bfloat16"
        _fail("conditional", expected, conditional.dtype, "convert it with .to()")
    if (unconditional is None) != (guidance is None):
        found = "guidance" if unconditional is None else "unconditional"
        _fail("guidance", "unconditional beside it", f"{found} alone", "pass both or neither")
    if rescale is not None and unconditional is None:
        _fail("rescale", "unconditional beside it", "None", "pass unconditional and guidance, or no rescale")
    if (states is None) != (conversion is None):
        found = "conversion" if states is None else "states"
        _fail("conversion", "states beside it", f"{found} alone", "pass both or neither")
    n, D = conditional.shape
    doubles = [tensor is not None and tensor.dtype == torch.float64 for tensor in (conditional, states)]
    real = torch.float64 if any(doubles) else torch.float32
    arguments: dict[str, tuple[Tensor | None, tuple[int, ...], tuple[torch.dtype, ...]]] = {
        "unconditional": (unconditional, (n, D), (conditional.dtype,)),
        "guidance": (guidance, (n,), (real,)),
        "rescale": (rescale, (n,), (real,)),
        "states": (states, (n, D), FLOATS),
        "conversion": (conversion, (n, 7), (real,)),
    }
    for name, (tensor, shape, dtypes) in arguments.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            _fail(name, f"shape {list(shape)}", list(tensor.shape), "conditional sets n and D")
        if tensor.dtype not in dtypes:
            _fail(name, f"dtype {dtypes[0]}", tensor.dtype, "convert it with .to()")
        if tensor.device != conditional.device:
            _fail(name, f"device {conditional.device}", tensor.device, "move it with .to()")
        if name in ("guidance", "rescale", "conversion") and not tensor.is_contiguous():
            _fail(name, "contiguous memory", f"strides {tensor.stride()}", "pass .contiguous()")


def _fail(name: str, expected: str, found: object, remedy: str) -> None:
    raise ValueError(f"drift_aggregate: {name} must have {expected}, found {found}; {remedy}")
