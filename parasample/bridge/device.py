"""Sampling whose rounds the device controls: `ps.Picard(control="device")` and `control="graph"`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from parasample.bridge.auto import FIRST_WINDOW
from parasample.bridge.denoiser import RowSelector
from parasample.bridge.schedulers import ReadScheduler
from parasample.bridge.solver import Generators
from parasample.config import Picard
from parasample.errors import ConfigError
from parasample.runtime.device_rounds import DeviceRounds
from parasample.runtime.transports import Ranks


def require_device_control(method: Picard, ranks: Ranks) -> None:
    """Raise ConfigError on every rank unless one process samples alone."""
    if method.control != "host" and ranks.size > 1:
        raise ConfigError(
            f'control={method.control!r} needs a single process, found {ranks.size} ranks; pass "host"'
        )


def solve_on_device(
    call: Callable[..., Tensor],
    read: ReadScheduler,
    x_T: Tensor,
    timesteps: Tensor,
    method: Picard,
    generator: Generators,
    conditioning: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> DeviceRounds:
    """Sample with `call(inputs, timesteps, **conditioning)`; `method.window` "auto" is at most 32 steps."""
    if method.window == "auto":
        method = replace(method, window=min(read.table.num_steps, FIRST_WINDOW))
    solver = DeviceRounds(
        read.table, x_T, method, lambda step: read.noise.draw(step, x_T, generator), read.to_output
    )
    selector, batch = RowSelector(), x_T.shape[0]
    # Every round has the same rows, so that its conditioning is made once.
    rows = {name: selector.select(name, value, batch, solver.samples) for name, value in conditioning.items()}
    solver.solve(lambda inputs, steps: call(inputs, timesteps[steps], **rows, **shared))
    return solver
