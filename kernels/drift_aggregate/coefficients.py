"""The coefficients that turn one kind of model output into another, from alpha and sigma of a state.

With x = alpha x0 + sigma n:

    epsilon       m = n                     x0 = (x - sigma m) / alpha
    v_prediction  m = alpha n - sigma x0    x0 = (alpha x - sigma m) / (alpha^2 + sigma^2)  (arXiv 2202.00512)
    sample        m = x0
    flow          m = n - x0                x0 = (x - sigma m) / (alpha + sigma)            (arXiv 2210.02747)
"""

from __future__ import annotations

import math

KINDS = ("epsilon", "v_prediction", "sample", "flow")


def in_coefficients(kind: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(of x, of m) in the data prediction x0. Epsilon needs alpha > 0."""
    _check(kind)
    if kind == "epsilon":
        return 1 / alpha, -sigma / alpha
    if kind == "v_prediction":
        squared = alpha**2 + sigma**2
        return alpha / squared, -sigma / squared
    if kind == "flow":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    return 0.0, 1.0


def out_coefficients(kind: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(of x, of x0) in a model output of this kind. All but sample need sigma > 0."""
    _check(kind)
    if kind == "epsilon":
        return 1 / sigma, -alpha / sigma
    if kind == "v_prediction":
        return alpha / sigma, -(alpha**2 + sigma**2) / sigma
    if kind == "flow":
        return 1 / sigma, -(alpha + sigma) / sigma
    return 0.0, 1.0


def conversion_row(
    in_coef: tuple[float, float],
    out_coef: tuple[float, float],
    bounds: tuple[float, float] = (-math.inf, math.inf),
    of_cut: float = 0.0,
) -> tuple[float, ...]:
    """One row of `drift_aggregate`'s conversion: (p, q), (a, b), (low, high) and c of its definition."""
    return (*in_coef, *out_coef, of_cut, *bounds)


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(
            f"drift_aggregate: kind must be one of {', '.join(KINDS)}, found {kind!r}; "
            "name what the model was trained to predict"
        )
