"""Update rules: how a model output taken at one state is carried over to another, as coefficients.

Every rule is a row of numbers for one and the same scan (`parasample.kernels.picard_update`):

    x[i+1] = sum_k state[i][k] x[i-k] + anchor[i][k] xa[i-k] + output[i][k] y[i-k]  + noise[i] z[i]

where y[j] is the model output evaluated at the anchor xa[j] and x[j] are the new states. A rule assumes
y_j(x) ~ y[j] + slope[j] (x - xa[j]); the slope follows from the slope of the data prediction,
gamma = dD/dx, by D = x0_state x + x0_output y. For data of variance s^2 and a Gaussian model of it,
gamma = alpha s^2 / (alpha^2 s^2 + sigma^2); s^2 = 1 freezes the velocity v.
"""

from __future__ import annotations

from dataclasses import dataclass

from parasample.plan.table import AffineTable


@dataclass(frozen=True)
class UpdateRule:
    """Coefficients of one update, all [T][K] but `slope` [T]; K - 1 is the history depth of the table."""

    state: tuple[tuple[float, ...], ...]
    anchor: tuple[tuple[float, ...], ...]
    output: tuple[tuple[float, ...], ...]
    slope: tuple[float, ...]


def output_slope(table: AffineTable, prior_variance: float) -> tuple[float, ...]:
    """dy/dx at each step for Gaussian data of variance `prior_variance`; [T], one number per step."""
    slopes = []
    for i in range(table.num_steps):
        alpha, sigma = table.alpha[i], table.sigma[i]
        gamma = alpha * prior_variance / (alpha * alpha * prior_variance + sigma * sigma)
        slopes.append((gamma - table.x0_state[i]) / table.x0_output[i])
    return tuple(slopes)


def linearised(table: AffineTable, prior_variance: float) -> UpdateRule:
    """The rule of "v", "gaussian" and of what "secant" and "anderson" start from."""
    slope = output_slope(table, prior_variance)
    depth = range(table.depth + 1)
    state, anchor = [], []
    for i in range(table.num_steps):
        carried = [table.output[i][k] * slope[i - k] if i >= k else 0.0 for k in depth]
        state.append(tuple(table.state[i][k] + carried[k] for k in depth))
        anchor.append(tuple(-carried[k] for k in depth))
    return UpdateRule(tuple(state), tuple(anchor), table.output, slope)


def published(table: AffineTable) -> UpdateRule:
    """Frozen drift (arXiv 2305.16317, eq. 6): x[i+1] = x[i] + (step(xa)[i] - xa[i]) + noise."""
    state, anchor = [], []
    for row in table.state:
        state.append((1.0,) + (0.0,) * table.depth)
        anchor.append((row[0] - 1.0, *row[1:]))
    return UpdateRule(tuple(state), tuple(anchor), table.output, (0.0,) * table.num_steps)


def residual_weights(table: AffineTable, stopping: str) -> tuple[float, ...]:
    """Weight of a state's mean squared change in the stopping rule; [T + 1], entry 0 unused.

    "published": 1 / sigma_j^2, the scheduler's variance of the step that made the state.
    "x0": the change that the state's error makes in its data prediction, 1 / alpha^2.
    """
    if stopping == "published":
        return (0.0, *(1.0 / variance for variance in table.variance))
    floor = 1e-3  # zero terminal SNR starts at alpha = 0, where no change is allowed to weigh infinitely
    return tuple(1.0 / max(alpha, floor) ** 2 for alpha in table.alpha)
