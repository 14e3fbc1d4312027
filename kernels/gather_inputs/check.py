"""The argument checks of gather_inputs for the faces in Python; the native op has the same in C++."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_arguments(
    states: Tensor, steps: Tensor, samples: Tensor, scale: Tensor | None, copies: int, dtype: torch.dtype
) -> None:
    """Raise ValueError (expected, found, remedy) unless the arguments are what `gather_inputs` asks for.

    Indices are read only where they are CPU tensors: elsewhere that would stall the device.
    """
    if states.dim() != 3 or states.shape[0] < 1:
        _fail("states", "shape [T+1, B, D]", list(states.shape), "flatten the sample to D elements")
    for name, found_dtype in (("states", states.dtype), ("the result", dtype)):
        if found_dtype not in FLOATS:
            expected = "a dtype of float32, float64, float16, bfloat16"
            _fail(name, expected, found_dtype, "name or convert to one of these")
    if states.shape[2] > 1 and states.stride(2) != 1:
        _fail("states", "unit stride in D", f"stride {states.stride(2)}", "pass a .contiguous() tensor")
    if copies < 1:
        _fail("copies", "a value of 1 or more", copies, "pass 2 for guidance in one batch, else 1")
    if steps.dim() != 1:
        _fail("steps", "shape [n]", list(steps.shape), "flatten it")
    T, B, n = states.shape[0] - 1, states.shape[1], steps.shape[0]
    real = torch.float64 if states.dtype == torch.float64 else torch.float32
    for name, tensor, length, wanted in (
        ("steps", steps, n, torch.int64),
        ("samples", samples, n, torch.int64),
        ("scale", scale, T, real),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != (length,):
            _fail(name, f"shape [{length}]", list(tensor.shape), "states sets T, steps sets n")
        if tensor.dtype != wanted:
            _fail(name, f"dtype {wanted}", tensor.dtype, "convert it with .to()")
        if tensor.device != states.device:
            _fail(name, f"device {states.device}", tensor.device, "move it with .to()")
    if steps.device.type == "cpu":
        for name, tensor, size in (("steps", steps, T), ("samples", samples, B)):
            outside = tensor[(tensor < 0) | (tensor >= size)]
            if len(outside):
                _fail(name, f"values 0 .. {size - 1}", int(outside[0]), "clip it to the trajectory")


def _fail(name: str, expected: str, found: object, remedy: str) -> None:
    raise ValueError(f"gather_inputs: {name} must have {expected}, found {found}; {remedy}")
