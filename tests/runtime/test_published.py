"""The published update equals ParaDiGMS (arXiv 2305.16317), transcribed here from the paper's description.

Noise is drawn once, before the first round. A round evaluates the drifts step(x_i) - x_i (without noise) of
the window in one batch and sets x_{j+1} = x_begin + sum_{i<=j} drift_i + sum_{i<=j} noise_i. A state has
converged when ||x_new - x_old||^2 / (D sigma_j^2) <= tolerance^2. The window slides to the first state that
has not; new slots start as a copy of the last state.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from toy import SCALED_LINEAR, mixture_epsilon, noise, seeded

import parasample as ps
from parasample.bridge.schedulers import read_scheduler

STEPS = 24


def ddim_step(scheduler: Any, x: Tensor, epsilon: Tensor, t: int, eta: float) -> tuple[Tensor, float]:
    """DDIM (arXiv 2010.02502, eq. 12): the mean of the next state and the standard deviation of its noise."""
    previous = t - 1000 // STEPS
    alphas = scheduler.alphas_cumprod.double()
    now = float(alphas[t])
    after = float(alphas[previous]) if previous >= 0 else float(scheduler.final_alpha_cumprod)
    sigma = eta * ((1 - after) / (1 - now) * (1 - now / after)) ** 0.5
    x0 = (x - (1 - now) ** 0.5 * epsilon) / now**0.5
    return after**0.5 * x0 + (1 - after - sigma**2) ** 0.5 * epsilon, sigma


def ddpm_step(scheduler: Any, x: Tensor, epsilon: Tensor, t: int, eta: float) -> tuple[Tensor, float]:
    """DDPM (arXiv 2006.11239, eq. 7) between the steps that are taken; no noise in the last one."""
    previous = t - 1000 // STEPS
    alphas = scheduler.alphas_cumprod.double()
    now, after = float(alphas[t]), float(alphas[previous]) if previous >= 0 else 1.0
    alpha = now / after
    x0 = (x - (1 - now) ** 0.5 * epsilon) / now**0.5
    mean = after**0.5 * (1 - alpha) / (1 - now) * x0 + alpha**0.5 * (1 - after) / (1 - now) * x
    return mean, ((1 - after) / (1 - now) * (1 - alpha)) ** 0.5 if t > 0 else 0.0


SAMPLERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}, ddim_step, 0.0),
    "ddim-eta1": ("DDIMScheduler", {"clip_sample": False}, ddim_step, 1.0),
    "ddim-old-alpha": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, ddim_step, 0.0),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, ddpm_step, 0.0),
}


class Transcription:
    """ParaDiGMS for one sample [D] in float64; `states` [T + 1, D], rounds and evaluations as they come."""

    def __init__(
        self, name: str, scheduler: Any, x_T: Tensor, variance: tuple[float, ...], z: Tensor
    ) -> None:
        _, _, self.step, self.eta = SAMPLERS[name]
        self.scheduler, self.variance = scheduler, variance
        self.timesteps = [int(t) for t in scheduler.timesteps]
        self.states = x_T.expand(STEPS + 1, *x_T.shape).clone()
        self.noise = torch.zeros(STEPS, *x_T.shape, dtype=torch.float64)
        for i, t in enumerate(self.timesteps):
            _, sigma = self.step(scheduler, x_T, x_T, t, self.eta)
            self.noise[i] = sigma * z[i]
        self.rounds = self.evaluations = 0

    def solve(self, window: int, tolerance: float) -> Transcription:
        begin, end = 0, min(window, STEPS)
        while begin < STEPS:
            x = self.states[begin:end]
            times = torch.tensor(self.timesteps[begin:end])
            epsilon = mixture_epsilon(x, times)
            drift = torch.stack(
                [
                    self.step(self.scheduler, x[i], epsilon[i], int(t), self.eta)[0] - x[i]
                    for i, t in enumerate(times)
                ]
            )
            new = x[0] + torch.cumsum(drift, 0) + torch.cumsum(self.noise[begin:end], 0)
            change = (new - self.states[begin + 1 : end + 1]).square().mean(dim=1)
            sigma2 = torch.tensor(self.variance[begin:end], dtype=torch.float64)
            moved = (change / sigma2 > tolerance**2).nonzero().flatten().tolist()
            self.states[begin + 1 : end + 1] = new
            self.rounds, self.evaluations = self.rounds + 1, self.evaluations + (end - begin)
            # Row begin + 1 was made from a final state, so it is final itself; then come the converged ones.
            begin = min(begin + 1 + moved[0], end) if moved else end
            new_end = min(begin + window, STEPS)
            self.states[end + 1 : new_end + 1] = self.states[end]
            end = new_end
        return self


@pytest.mark.parametrize("tolerance", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("window", [1, 5, 16, STEPS])
@pytest.mark.parametrize("name", SAMPLERS)
def test_equals_the_transcription(name: str, window: int, tolerance: float) -> None:
    import diffusers

    kind, config, _, eta = SAMPLERS[name]
    scheduler = getattr(diffusers, kind)(**SCALED_LINEAR, **config)
    scheduler.set_timesteps(STEPS)
    # Its own tables are float32; the transcription works from the same numbers in float64.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    table = read_scheduler(scheduler, step_kwargs={"eta": eta} if kind == "DDIMScheduler" else {}).table
    x_T = noise(1, 40, dtype=torch.float64)
    generator, drawn = seeded(9), seeded(9)
    z = torch.zeros(STEPS, 40, dtype=torch.float64)
    for i in range(STEPS):
        if table.noise[i] != 0:
            z[i] = torch.randn(1, 40, generator=drawn, dtype=torch.float64)[0]
    expected = Transcription(name, scheduler, x_T[0], table.variance, z).solve(window, tolerance)
    found = ps.sample(
        mixture_epsilon, scheduler, x_T,
        ps.Picard(window=window, tolerance=tolerance, update="published", stopping="published", record=True),
        generator=generator, step_kwargs={"eta": eta} if kind == "DDIMScheduler" else None,
    )  # fmt: skip
    assert (found.stats.rounds, found.stats.evaluations) == (expected.rounds, expected.evaluations)
    trajectory = found.stats.history[-1].states
    assert trajectory is not None
    torch.testing.assert_close(trajectory[:, 0], expected.states, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.sample[0], expected.states[-1], rtol=1e-10, atol=1e-10)
