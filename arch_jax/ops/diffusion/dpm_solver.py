"""DPM-Solver++, multistep: the exact solution for a D that is a polynomial in lambda = log(alpha / sigma).

With h = lambda' - lambda, and D fitted to the last calls' (Lu et al. 2022, 2211.01095, equation 9):

    x' = sigma' / sigma x + alpha' integral of e^(s - h) D(lambda + s) ds for s in [0, h]
"""

from typing import Any, Literal

import numpy as np

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.solve import CURRENT, HISTORY, StepCoefficients


def dpm_solver(
    process: Any,
    times: np.ndarray,
    order: int = 2,
    *,
    stochastic: bool = False,
    form: Literal["midpoint", "heun"] = "midpoint",
    lower_at_end: bool = False,
) -> StepCoefficients:
    """DPM-Solver++ of order 1 (which is DDIM), 2 ("2M") or 3 ("3M"); the first steps have lower orders.

    In the form "midpoint" 3M is as in the authors' code and those that followed it, with half of the quadratic term's
    integral, so that its order is 2; in the form "heun" the term is whole, and the order 3.

    Args:
      process: alpha and sigma.
      times: from `grid`.
      order: 1, 2 or 3. A step to sigma = 0 is always of order 1: lambda is infinite there.
      stochastic: the SDE in place of the ODE ("SDE-DPM-Solver++", appendix B), of order 1 or 2.
      form: D's slope enters as at the midpoint (algorithm 2) or, "heun", by its exact integral.
      lower_at_end: whether the last step, and of order 3 the one before, is of lower order even where sigma is above 0,
        for few steps.

    Raises:
      UsageError: an order that there is not.
    """
    most = 2 if stochastic else 3
    if not 1 <= order <= most:
        raise UsageError(
            f"order is {order}; expected 1 to {most} of the {'stochastic' if stochastic else 'deterministic'} solver"
        )
    alpha, sigma = process.coefficients(times, np)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    steps = len(times) - 1
    rows = StepCoefficients.empty(times[:-1], history=order)
    for i in range(steps):
        used = min(order, i + 1)
        if sigma[i + 1] == 0 or (lower_at_end and i == steps - 1) or not np.isfinite(lam[i]):
            used = 1
        elif lower_at_end and i == steps - 2:
            used = min(used, 2)
        if used > 1 and not np.isfinite(lam[i - used + 1]):  # a grid that begins with noise alone
            used -= 1
        h = lam[i + 1] - lam[i] if np.isfinite(lam[i]) else np.inf
        factor = 2.0 if stochastic else 1.0
        # 1 - e^(-h), or of the SDE 1 - e^(-2h): the share of D in the step.
        share = -np.expm1(-factor * h)
        rows.point[i, CURRENT] = sigma[i + 1] / sigma[i] * (np.exp(-h) if stochastic else 1.0)
        weights = np.zeros(order)
        weights[0] = share
        if used >= 2:
            weights += _slope(lam, i, used, h, share, form, stochastic, len(weights))
        rows.point[i, HISTORY:-1] = alpha[i + 1] * weights
        if stochastic:
            rows.point[i, -1] = sigma[i + 1] * np.sqrt(-np.expm1(-2 * h)) if sigma[i + 1] > 0 else 0.0
    return rows.single()


def _slope(
    lam: np.ndarray, i: int, used: int, h: float, share: float, form: str, stochastic: bool, columns: int
) -> np.ndarray:
    """Weights of D at the last calls, for its first differences, and for the second one of order 3."""
    now, before = np.eye(columns)[0], np.eye(columns)[1]
    r0 = (lam[i] - lam[i - 1]) / h
    first = (now - before) / r0
    if stochastic:
        exact = share / (-2 * h) + 1
    else:
        exact = 1 - share / h
    if used == 2:
        return (share / 2 if form == "midpoint" else exact) * first
    earlier = np.eye(columns)[2]
    r1 = (lam[i - 1] - lam[i - 2]) / h
    second = (first - (before - earlier) / r1) / (r0 + r1)
    first = first + r0 * second
    quadratic = 0.5 - (h - share) / h**2
    return exact * first + (2 if form == "heun" else 1) * quadratic * second
