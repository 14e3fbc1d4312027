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
    in_coef: Tensor | None,
    out_coef: Tensor | None,
    clip: Tensor | None,
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
    conversion = (states, in_coef, out_coef)
    if any(tensor is None for tensor in conversion) and any(tensor is not None for tensor in conversion):
        names = ("states", "in_coef", "out_coef")
        missing = [name for name, tensor in zip(names, conversion, strict=True) if tensor is None]
        remedy = "pass all three or none"
        _fail("a conversion", "states, in_coef and out_coef", f"no {', no '.join(missing)}", remedy)
    if clip is not None and states is None:
        _fail("clip", "a conversion beside it", "None", "pass states, in_coef and out_coef, or no clip")
    n, D = conditional.shape
    doubles = [tensor is not None and tensor.dtype == torch.float64 for tensor in (conditional, states)]
    real = torch.float64 if any(doubles) else torch.float32
    arguments: dict[str, tuple[Tensor | None, tuple[int, ...], tuple[torch.dtype, ...]]] = {
        "unconditional": (unconditional, (n, D), (conditional.dtype,)),
        "guidance": (guidance, (n,), (real,)),
        "rescale": (rescale, (n,), (real,)),
        "states": (states, (n, D), FLOATS),
        "in_coef": (in_coef, (n, 2), (real,)),
        "out_coef": (out_coef, (n, 2), (real,)),
        "clip": (clip, (n,), (real,)),
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


def _fail(name: str, expected: str, found: object, remedy: str) -> None:
    raise ValueError(f"drift_aggregate: {name} must have {expected}, found {found}; {remedy}")
