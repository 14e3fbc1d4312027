"""Noise levels of a scheduler's states, and its data prediction, in the state's own convention.

x[i] ~ alpha[i] x0 + sigma[i] n, read by giving `add_noise` (or flow matching's `scale_noise`) x0 = 1 and
n = 1 in turn. The data prediction D = p x + q m follows from the model's kind, r^2 = alpha^2 + sigma^2:

    epsilon  m = n                          D = x / alpha - (sigma / alpha) m
    v        m = (alpha n - sigma x0) / r   D = (alpha / r^2) x - (sigma / r) m   (arXiv 2202.00512, app. D)
    flow     m = n - x0, or x0 - n          D = (x -+ sigma m) / (alpha + sigma)  (arXiv 2210.02747)
    sample   m = x0                         D = m

Many schedulers show their own D, and then that is what counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parasample.bridge.schedulers.intercept import Unreadable, working_copy
from parasample.bridge.schedulers.probe import Probe

# Classes with neither `add_noise` nor a prediction type, so that no method can be asked: their levels by
# position, and what their model predicts, from how `step` uses it. IPNDM makes noise of m by betas x + alphas
# m; LTX makes data of it by x - sigma m.
_FACTS: dict[str, tuple[Callable[[Any], tuple[Tensor, Tensor]], str]] = {
    "IPNDMScheduler": (lambda scheduler: (scheduler.alphas, scheduler.betas), "v"),
    "LTXEulerAncestralRFScheduler": (lambda scheduler: (1 - scheduler.sigmas, scheduler.sigmas), "flow"),
}
_KINDS = {
    "epsilon": "epsilon",
    "sample": "sample",
    "original_sample": "sample",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
# Relative difference at which a scheduler's own data prediction overrules its `add_noise` (KDPM2 evaluates
# halfway between the levels that add_noise knows). Rounding of float32 levels stays two orders below.
_DISAGREEMENT = 1e-3
# A final noise level below this fraction of the one before it is rounding of an exact 0.
_FINAL_ROUNDING = 1e-4


def read_marginals(scheduler: Any, begin: int, probe: Probe) -> tuple[Tensor, Tensor, Tensor]:
    """alpha [T + 1], sigma [T + 1] and the data prediction's (p, q) [2, T] in raw outputs; all float64.

    Raises:
        Unreadable: if the noise levels, or what the model predicts, cannot be found out.
    """
    steps = len(probe.noise)
    kind = None if hasattr(scheduler, "precondition_outputs") else _prediction_kind(scheduler)
    levels = _levels(scheduler, begin, steps)
    x0 = probe.x0 if probe.x0 is not None else _precondition(scheduler, begin, steps)
    if levels is None:
        levels = _levels_from_x0(x0, kind)
    elif x0 is not None and kind in ("epsilon", "v"):
        expected = x0_coefficients(kind, *levels)
        if bool(((expected - x0).abs() > _DISAGREEMENT * expected.abs()).any()):
            levels = _levels_from_x0(x0, kind)
    alpha, sigma = levels
    if x0 is None:
        if kind is None:
            raise Unreadable("it does not say what its model predicts (no prediction_type)")
        x0 = x0_coefficients(kind, alpha, sigma)
        if kind == "flow":  # exact velocities take the last step to the least noise if their sign is right
            towards_data = x0 * torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
            x0 = min(x0, towards_data, key=lambda option: float(_final_level(alpha, sigma, probe, option)[1]))
    final = _final_level(alpha, sigma, probe, x0)
    return torch.cat((alpha, final[:1])), torch.cat((sigma, final[1:])), x0


def x0_coefficients(kind: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """(p, q) of D = p x + q m for one of the kinds above; [2, T] from levels [T]."""
    if kind == "epsilon":
        return torch.stack((1 / alpha, -sigma / alpha))
    if kind == "v":
        norm = torch.hypot(alpha, sigma)
        return torch.stack((alpha / norm**2, -sigma / norm))
    if kind == "flow":
        return torch.stack((1 / (alpha + sigma), -sigma / (alpha + sigma)))
    return torch.stack((torch.zeros_like(alpha), torch.ones_like(alpha)))


def _prediction_kind(scheduler: Any) -> str | None:
    fact = _fact(scheduler)
    if fact is not None:
        return fact[1]
    stated = scheduler.config.get("prediction_type")
    if stated is not None:
        return _KINDS.get(stated)
    return "flow" if hasattr(scheduler, "scale_noise") else None


def _fact(scheduler: Any) -> tuple[Callable[[Any], tuple[Tensor, Tensor]], str] | None:
    names = [base.__name__ for base in type(scheduler).__mro__]
    return next((_FACTS[name] for name in names if name in _FACTS), None)


def _levels(scheduler: Any, begin: int, steps: int) -> tuple[Tensor, Tensor] | None:
    """alpha, sigma [T] of the states before each step; None if the scheduler cannot be asked."""
    fact = _fact(scheduler)
    if fact is not None:
        alpha, sigma = (level[begin : begin + steps].double().cpu() for level in fact[0](scheduler))
        return alpha, sigma
    duplicate = working_copy(scheduler, None)
    timesteps = duplicate.timesteps[begin:]
    try:
        if hasattr(duplicate, "_step_index"):  # looks its level up by position; timesteps may repeat
            found = torch.stack([_level_at(duplicate, begin + i, t) for i, t in enumerate(timesteps)])
        else:
            found = _noised(duplicate, timesteps)
    except Exception:  # whatever a foreign add_noise objects to, it did not answer
        return None
    alpha, sigma = found.T
    # Mochi's sigma counts data up instead of noise down.
    inverted = scheduler.config.get("invert_sigmas", False)
    return (sigma, alpha) if inverted else (alpha, sigma)


def _level_at(scheduler: Any, position: int, timestep: Tensor) -> Tensor:
    """(alpha, sigma) [2] at one position of the schedule; moves the (copied) scheduler there."""
    scheduler._begin_index = scheduler._step_index = position
    return _noised(scheduler, timestep.reshape(1))[0]


def _noised(scheduler: Any, timesteps: Tensor) -> Tensor:
    """(alpha, sigma) [n, 2] at n timesteps, from the pairs (x0, n) = (1, 0) and (0, 1)."""
    pairs = torch.eye(2, dtype=torch.float64).expand(len(timesteps), 2, 2)
    data, noise = pairs[:, 0, :, None, None], pairs[:, 1, :, None, None]  # [n, 2, 1, 1]
    if hasattr(scheduler, "add_noise"):
        noised = scheduler.add_noise(data, noise, timesteps)
    else:
        noised = scheduler.scale_noise(data, timesteps, noise)
    return noised.reshape(len(timesteps), 2).double()


def _precondition(scheduler: Any, begin: int, steps: int) -> Tensor | None:
    """(p, q) [2, T] of schedulers that combine state and output themselves (EDM, arXiv 2206.00364, eq. 7)."""
    if not hasattr(scheduler, "precondition_outputs"):
        return None
    sigma = scheduler.sigmas[begin : begin + steps].double().cpu()
    one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
    from_state = scheduler.precondition_outputs(one, zero, sigma)
    return torch.stack((from_state, scheduler.precondition_outputs(zero, one, sigma)))


def _levels_from_x0(x0: Tensor | None, kind: str | None) -> tuple[Tensor, Tensor]:
    """alpha, sigma [T] of an epsilon or v prediction whose (p, q) is known: the table above, inverted."""
    if x0 is None or kind not in ("epsilon", "v"):
        raise Unreadable("it has neither add_noise nor scale_noise to tell its noise levels")
    p, q = x0
    if kind == "epsilon":
        return 1 / p, -q / p
    norm_squared = (1 - q**2) / p**2
    return p * norm_squared, -q * norm_squared.sqrt()


def _final_level(alpha: Tensor, sigma: Tensor, probe: Probe, x0: Tensor) -> Tensor:
    """(alpha[T], sigma[T]) [2]: where the last step takes states whose every data prediction is exact.

    This is the scheduler's own convention of the end: final_alpha_cumprod, sigma 0, sigma_min.
    """
    last = len(alpha) - 1
    lags = torch.arange(min(last + 1, probe.state.shape[1]))
    steps, state, output = last - lags, probe.state[last, lags], probe.output[last, lags]
    if probe.clip is None:  # y = m = (D - p x) / q with D = x0
        p, q = x0[:, steps]
        used = output != 0
        data = torch.where(used, (1 - p * alpha[steps]) / q, 0.0)
        noise = torch.where(used, -p * sigma[steps] / q, 0.0)
    else:
        data, noise = torch.stack(probe.weights).sum(dim=0)[steps], torch.zeros_like(output)
    final_alpha = (state * alpha[steps] + output * data).sum()
    carried = (state * sigma[steps] + output * noise).sum()
    final_sigma = torch.hypot(carried, probe.noise[last])
    if final_sigma < _FINAL_ROUNDING * sigma[last]:
        final_sigma = torch.zeros_like(final_sigma)
    return torch.stack((final_alpha, final_sigma))
