"""The scheduler table as data: what it checks, how it is cut and rewritten, and the variance of its steps."""

import ast
import dataclasses
import math
import sys
from pathlib import Path

import pytest

import parasample.plan.table as table_module
from parasample.errors import ConfigError
from parasample.plan.table import AffineTable, posterior_variance


def make_table(num_steps: int = 4, depth: int = 1) -> AffineTable:
    """A table of distinct numbers whose first steps read no further back than they can."""
    rows = [
        tuple((-1) ** k * (1.0 + 0.1 * i + 0.01 * k) if k <= i else 0.0 for k in range(depth + 1))
        for i in range(num_steps)
    ]
    sigma = tuple(1.0 - i / num_steps for i in range(num_steps + 1))
    alpha = tuple(1.0 - value for value in sigma)
    return AffineTable(
        timesteps=tuple(float(num_steps - i) for i in range(num_steps)),
        input_scale=(1.0,) * num_steps,
        state=tuple(rows),
        output=tuple(tuple(0.5 * value for value in row) for row in rows),
        noise=(0.0,) * num_steps,
        alpha=alpha,
        sigma=sigma,
        x0_state=tuple(1.0 + 0.1 * i for i in range(num_steps)),
        x0_output=tuple(-0.5 - 0.1 * i for i in range(num_steps)),
        variance=posterior_variance(alpha, sigma),
    )


def run(table: AffineTable, start: float, outputs: list[float]) -> list[float]:
    states = [start]
    for i in range(table.num_steps):
        lags = range(min(i, table.depth) + 1)
        states.append(
            sum(table.state[i][k] * states[i - k] + table.output[i][k] * outputs[i - k] for k in lags)
        )
    return states


def test_imports_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(table_module.__file__).read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    outside = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert outside == {"parasample.errors"}


def test_counts_steps_and_depth() -> None:
    table = make_table(num_steps=5, depth=2)
    assert (table.num_steps, table.depth, table.stochastic) == (5, 2, False)
    assert dataclasses.replace(table, noise=(0.0, 0.0, 1e-3, 0.0, 0.0)).stochastic


@pytest.mark.parametrize("field", ["timesteps", "state", "alpha", "variance"])
def test_refuses_fields_of_different_lengths(field: str) -> None:
    table = make_table()
    with pytest.raises(ConfigError, match="needs"):
        dataclasses.replace(table, **{field: getattr(table, field)[:-1]})


def test_refuses_ragged_rows() -> None:
    table = make_table(depth=1)
    with pytest.raises(ConfigError, match="same length"):
        dataclasses.replace(table, state=(*table.state[:-1], (1.0,)))


def test_slice_keeps_the_remaining_steps() -> None:
    table = make_table(num_steps=5, depth=0)
    rest = table.slice(2)
    assert rest.timesteps == table.timesteps[2:] and rest.state == table.state[2:]
    assert rest.alpha == table.alpha[2:] and len(rest.sigma) == rest.num_steps + 1


def test_slice_refuses_to_cut_history() -> None:
    with pytest.raises(ConfigError, match="begin_index=2"):
        make_table(depth=1).slice(2)
    with pytest.raises(ConfigError, match="outside"):
        make_table(depth=0).slice(4)


def test_head_keeps_the_first_steps() -> None:
    table = make_table(num_steps=5, depth=1)
    first = table.head(3)
    assert first.timesteps == table.timesteps[:3] and first.output == table.output[:3]
    assert first.alpha == table.alpha[:4]
    assert table.head(5) == table
    with pytest.raises(ConfigError, match="outside"):
        table.head(0)


def test_data_form_is_the_same_recurrence() -> None:
    table = make_table(num_steps=6, depth=2)
    outputs = [0.3, -0.7, 0.2, 0.9, -0.4, 0.5]
    states = run(table, 1.5, outputs)
    data = [table.x0_state[i] * states[i] + table.x0_output[i] * outputs[i] for i in range(table.num_steps)]
    assert run(table.data_form(), 1.5, data) == pytest.approx(states, rel=1e-12)


def test_variance_is_the_ddpm_posterior() -> None:
    """beta-tilde of arXiv 2006.11239 (eq. 7): (1 - abar') / (1 - abar) * (1 - abar / abar')."""
    cumulated = [0.05, 0.3, 0.7, 0.95]
    alpha = tuple(math.sqrt(value) for value in cumulated)
    sigma = tuple(math.sqrt(1 - value) for value in cumulated)
    expected = [
        (1 - after) / (1 - before) * (1 - before / after)
        for before, after in zip(cumulated, cumulated[1:], strict=False)
    ]
    assert posterior_variance(alpha, sigma) == pytest.approx(expected, rel=1e-12)


def test_variance_does_not_depend_on_the_convention() -> None:
    """Scaling each state by its own factor scales the variance by that factor squared."""
    alpha, sigma = (0.2, 0.5, 0.9), (0.98, 0.8, 0.3)
    euler = posterior_variance((1.0, 1.0, 1.0), tuple(s / a for a, s in zip(alpha, sigma, strict=True)))
    scaled = [value * a * a for value, a in zip(euler, alpha[1:], strict=True)]
    assert posterior_variance(alpha, sigma) == pytest.approx(scaled, rel=1e-12)


def test_variance_is_positive_at_the_end_and_where_the_level_repeats() -> None:
    alpha, sigma = (1.0,) * 5, (14.0, 3.0, 3.0, 0.5, 0.0)
    variance = posterior_variance(alpha, sigma)
    assert all(value > 0 and math.isfinite(value) for value in variance)
    assert variance[1] == variance[0] and variance[3] == variance[2]
    assert posterior_variance((0.1, 1.0), (0.9, 0.0)) == (pytest.approx(1e-4),)
    assert posterior_variance((0.0, 0.5), (1.0, 0.5)) == (pytest.approx(0.25),)  # zero terminal SNR
