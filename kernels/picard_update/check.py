"""The argument checks of picard_update for the faces in Python; the native op has the same in C++."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

Fail = Callable[[str, str, object, str], NoReturn]
MAX_HISTORY = 5  # of the fused faces; the reference takes any
MAX_RANK = 8  # directions per model output: what a round reads stays within a few times its outputs
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ROWS = ("anchors", "outputs", "noise", "directions")  # only their last dimension must be dense


def check_arguments(
    states: Tensor,
    anchors: Tensor,
    outputs: Tensor,
    noise: Tensor | None,
    state_coef: Tensor,
    anchor_coef: Tensor,
    output_coef: Tensor,
    noise_coef: Tensor,
    x0_coef: Tensor,
    residual_scale: Tensor,
    begin: Tensor,
    hold: Tensor,
    end: Tensor,
    weights: Tensor | None = None,
    directions: Tensor | None = None,
    *,
    op: str = "picard_update",
    max_history: int = MAX_HISTORY,
) -> None:
    """Raise ValueError (expected, found, remedy) unless the arguments are what `picard_update` asks for.

    `op` names who asks.

    Ranges are read only where begin, hold and end are CPU tensors: elsewhere that would stall the device.
    """
    fail = functools.partial(_fail, op)
    if states.dim() != 3 or states.shape[0] < 1:
        fail("states", "shape [T+1, B, D]", list(states.shape), "flatten the sample to D elements")
    if state_coef.dim() != 2 or not 1 <= state_coef.shape[1] <= max_history:
        remedy = "longer histories are for dense_update, which face='auto' takes"
        fail("state_coef", f"shape [T, K], K = 1 .. {max_history}", list(state_coef.shape), remedy)
    rows, B, D = states.shape
    T, K = rows - 1, state_coef.shape[1]
    if states.dtype not in FLOATS:
        fail(
            "states", "a dtype of float32, float64, float16, bfloat16", states.dtype, "convert it with .to()"
        )
    real = torch.float64 if states.dtype == torch.float64 else torch.float32
    R = _rank(fail, weights, directions)
    arguments: dict[str, tuple[Tensor | None, tuple[int, ...], tuple[torch.dtype, ...]]] = {
        "anchors": (anchors, (rows, B, D), (states.dtype,)),
        "outputs": (outputs, (T, B, D), FLOATS),
        "noise": (noise, (T, B, D), FLOATS),
        "state_coef": (state_coef, (T, K), (real,)),
        "anchor_coef": (anchor_coef, (T, K), (real,)),
        "output_coef": (output_coef, (T, K), (real,)),
        "noise_coef": (noise_coef, (T,), (real,)),
        "x0_coef": (x0_coef, (T, 2), (real,)),
        "residual_scale": (residual_scale, (rows,), (real,)),
        "begin": (begin, (B,), (torch.int64,)),
        "hold": (hold, (B,), (torch.int64,)),
        "end": (end, (B,), (torch.int64,)),
        "weights": (weights, (T, B, R), (real,)),
        "directions": (directions, (T, B, R, D), FLOATS),
    }
    for name, (tensor, shape, dtypes) in arguments.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            fail(name, f"shape {list(shape)}", list(tensor.shape), "states and state_coef set T, B, D and K")
        if tensor.dtype not in dtypes:
            fail(name, f"dtype {dtypes[0]}", tensor.dtype, "convert it with .to()")
        if tensor.device != states.device:
            fail(name, f"device {states.device}", tensor.device, "move it with .to()")
        if name not in ROWS and not tensor.is_contiguous():
            fail(name, "contiguous memory", f"strides {tensor.stride()}", "pass .contiguous()")
    if D > 1 and states.stride(2) != 1:
        fail("states", "unit stride in D", f"stride {states.stride(2)}", "pass a .contiguous() tensor")
    if (
        anchors.data_ptr() == states.data_ptr()
        and anchors.stride()[:2] != states.stride()[:2]
        and states.numel()
    ):
        remedy = "pass states itself or a .clone()"
        fail("anchors", "the strides of states where it is its memory", f"strides {anchors.stride()}", remedy)
    if begin.device.type == "cpu":
        _check_ranges(
            fail, begin.tolist(), hold.tolist(), end.tolist(), T, None if noise is not None else noise_coef
        )


def _rank(fail: Fail, weights: Tensor | None, directions: Tensor | None) -> int:
    """R, the number of directions per output; 0 where there are none."""
    if weights is None or directions is None:
        if weights is not None or directions is not None:
            found = "weights" if directions is None else "directions"
            fail("weights and directions", "both or neither", f"{found} alone", "pass both or neither")
        return 0
    if weights.dim() != 3 or not 1 <= weights.shape[2] <= MAX_RANK:
        remedy = "keep the directions that matter most"
        fail("weights", f"shape [T, B, R], R = 1 .. {MAX_RANK}", list(weights.shape), remedy)
    return weights.shape[2]


def _check_ranges(
    fail: Fail,
    begin: list[int],
    hold: list[int],
    end: list[int],
    num_steps: int,
    unused_noise_coef: Tensor | None,
) -> None:
    for b, (first, hold_row, last) in enumerate(zip(begin, hold, end, strict=True)):
        if last <= first:
            continue
        if first < 0 or last > num_steps:
            expected = f"0 <= begin < end <= T = {num_steps}"
            fail(f"sample {b}", expected, f"begin={first} end={last}", "clip the window to the trajectory")
        if hold_row < first - 1:
            remedy = "rows before begin must have been evaluated"
            fail(f"sample {b}", f"hold >= begin - 1 = {first - 1}", f"hold={hold_row}", remedy)
        if unused_noise_coef is not None and bool(unused_noise_coef[first:last].any()):
            remedy = "pass noise [T, B, D] or zero coefficients"
            fail("noise_coef", "zeros where noise is None", "other values", remedy)


def _fail(op: str, name: str, expected: str, found: object, remedy: str) -> NoReturn:
    raise ValueError(f"{op}: {name} must have {expected}, found {found}; {remedy}")
