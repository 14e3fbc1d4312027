"""A scheduler's recurrence as data: plain numbers, one row per step, no torch.

Notation, here and wherever a table is used: x[i] is the state before step i, x[T] the finished sample; y[i]
is the model output taken at x[i]; z[i] is standard normal noise. "Step" counts calls of the scheduler's
`step`, which is also how often the model is called: Heun-like solvers take two steps per interval.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from parasample.errors import ConfigError

Row = tuple[float, ...]


@dataclass(frozen=True)
class AffineTable:
    """x[i+1] = sum_k state[i][k] x[i-k] + sum_k output[i][k] y[i-k] + noise[i] z[i],  i = 0..T-1.

    Coefficients are unitless, [T][K] with one K for `state` and `output`, the smallest that fits; those with
    k > i are 0. y is the raw model output unless the reader of the scheduler says otherwise: where the
    scheduler clips, y is the clipped data prediction itself, so that x0_state is 0 and x0_output is 1.

    Attributes:
        timesteps: [T] what the model is called with, in the scheduler's own units.
        input_scale: [T] the model's input is input_scale[i] * x[i].
        state, output: [T][K] the recurrence.
        noise: [T] standard deviation of the noise added by step i; 0 where there is none.
        alpha, sigma: [T + 1] marginals x[i] ~ alpha[i] x0 + sigma[i] n in the state's own convention: alpha
            is 1 for Euler-like schedulers, alpha^2 + sigma^2 = 1 for DDPM-like ones, alpha + sigma = 1 for
            flows.
        x0_state, x0_output: [T] data prediction D[i] = x0_state[i] x[i] + x0_output[i] y[i].
        variance: [T] sigma_j^2 of the ParaDiGMS stopping rule (arXiv 2305.16317, section 3.2): the variance
            of x[i+1] given x[i] and x0, see `posterior_variance`; positive and finite.
    """

    timesteps: Row
    input_scale: Row
    state: tuple[Row, ...]
    output: tuple[Row, ...]
    noise: Row
    alpha: Row
    sigma: Row
    x0_state: Row
    x0_output: Row
    variance: Row

    def __post_init__(self) -> None:
        steps = len(self.timesteps)
        if steps == 0:
            raise ConfigError("a table needs at least one step, found timesteps=()")
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            expected = steps + 1 if field.name in ("alpha", "sigma") else steps
            if len(values) != expected:
                raise ConfigError(
                    f"{field.name} has {len(values)} entries; a table of {steps} steps needs {expected}"
                )
        widths = {len(row) for row in (*self.state, *self.output)}
        if len(widths) != 1 or 0 in widths:
            raise ConfigError(
                f"state and output rows have lengths {sorted(widths)}; all need the same length K >= 1"
            )

    @property
    def num_steps(self) -> int:
        """T, the number of scheduler steps and model evaluations of a sequential run."""
        return len(self.timesteps)

    @property
    def depth(self) -> int:
        """K - 1: how many states and outputs before the current one a step reads; 0 for one-step samplers."""
        return len(self.state[0]) - 1

    @property
    def stochastic(self) -> bool:
        """Whether any step adds noise."""
        return any(value != 0.0 for value in self.noise)

    def slice(self, begin: int) -> AffineTable:
        """The steps from `begin` on, as a table of its own.

        Raises:
            ConfigError: if `begin` is out of range, or a remaining step reads states from before it. (A
                scheduler that starts late takes lower-order first steps: read it again with that begin_index
                instead.)
        """
        if not 0 <= begin < self.num_steps:
            raise ConfigError(f"begin={begin} is outside 0..{self.num_steps - 1}; pass the index of a step")
        for i in range(begin, min(begin + self.depth, self.num_steps)):
            reach = i - begin + 1
            if any((*self.state[i][reach:], *self.output[i][reach:])):
                raise ConfigError(
                    f"step {i} reads states from before begin={begin}; "
                    f"read the scheduler with begin_index={begin} instead"
                )
        return AffineTable(
            **{field.name: getattr(self, field.name)[begin:] for field in dataclasses.fields(self)}
        )

    def head(self, num_steps: int) -> AffineTable:
        """The first `num_steps` steps, for a loop that stops early (the base of a base and refiner).

        Raises:
            ConfigError: if `num_steps` is not in 1..T.
        """
        if not 1 <= num_steps <= self.num_steps:
            raise ConfigError(f"num_steps={num_steps} is outside 1..{self.num_steps}, the steps of the table")
        ends = {"alpha": num_steps + 1, "sigma": num_steps + 1}
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return AffineTable(**{name: values[: ends.get(name, num_steps)] for name, values in fields.items()})

    def data_form(self) -> AffineTable:
        """The same recurrence with y[i] = D[i], the data prediction, in place of the model output.

        Substitutes y = (D - x0_state x) / x0_output. Multistep samplers, whose state rows then hold a single
        nonzero entry, become x[i+1] = a x[i] + sum_k c_k D[i-k] + s z[i] (arXiv 2211.01095, eq. 8).
        """
        state, output = [], []
        for i in range(self.num_steps):
            lags = range(min(i, self.depth) + 1)
            padding = (0.0,) * (self.depth - min(i, self.depth))
            ratios = [self.output[i][k] / self.x0_output[i - k] for k in lags]
            state.append((*(self.state[i][k] - ratios[k] * self.x0_state[i - k] for k in lags), *padding))
            output.append((*ratios, *padding))
        zeros, ones = (0.0,) * self.num_steps, (1.0,) * self.num_steps
        return dataclasses.replace(
            self, state=tuple(state), output=tuple(output), x0_state=zeros, x0_output=ones
        )


def posterior_variance(alpha: Row, sigma: Row) -> Row:
    """Variance of x[i+1] given x[i] and x0 for each step; [T] from marginals [T + 1].

    With r = alpha[i]/alpha[i+1] the transition x[i] = r x[i+1] + sqrt(sigma[i]^2 - r^2 sigma[i+1]^2) n has
    the posterior variance sigma[i+1]^2 (1 - r^2 sigma[i+1]^2 / sigma[i]^2): DDPM's beta-tilde
    (arXiv 2006.11239, eq. 7) in any convention.

    The formula is 0 where a step ends at sigma = 0 (the last one) or stays at the same noise level (the
    second half of a Heun step). A stopping rule divides by it, so such a step borrows the last positive value
    before it; if there is none, the first after it; if none at all (a single step), (0.01 alpha[i+1])^2, a
    hundredth of the data's scale.
    """
    variances = []
    for i in range(len(alpha) - 1):
        if sigma[i] <= 0.0 or alpha[i + 1] == 0.0:
            variances.append(0.0)
            continue
        ratio = alpha[i] * sigma[i + 1] / (alpha[i + 1] * sigma[i])
        variances.append(sigma[i + 1] ** 2 * (1.0 - ratio * ratio))
    # Equal noise levels leave rounding of either sign: 1e-6 of sigma^2 separates it from a real step, whose
    # smallest relative change over 1000 steps is about 1e-3.
    usable = [v > 1e-6 * sigma[i + 1] ** 2 and v > 0.0 and math.isfinite(v) for i, v in enumerate(variances)]
    first = next((v for v, ok in zip(variances, usable, strict=True) if ok), None)
    last, filled = first, []
    for i, (value, ok) in enumerate(zip(variances, usable, strict=True)):
        last = value if ok else last
        filled.append(last if last is not None else (0.01 * (alpha[i + 1] or 1.0)) ** 2)
    return tuple(filled)
