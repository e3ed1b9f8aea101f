"""UniPC: a multistep predictor, and a corrector that takes the next call's D as well, at no further call.

With h = lambda' - lambda and the last calls' D_m at lambda_m, r_m = (lambda_m - lambda) / h (Zhao et al. 2023,
2302.04867, equations 3 and 9, in the data prediction of appendix A.4):

    x' = sigma' / sigma x + alpha' (1 - e^-h) D_0 + alpha' B(h) sum_m rho_m (D_m - D_0) / r_m

The rho make it exact for a D that is a polynomial in lambda of the order less 1. The corrector has D' of the new point
among the D_m, with r = 1, and its x' is what the next step sets out from.
"""

import math
from typing import Any, Literal

import numpy as np

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.solve import ANCHOR, CURRENT, HISTORY, StepCoefficients


def unipc(
    process: Any,
    times: np.ndarray,
    order: int = 2,
    *,
    variant: Literal["bh1", "bh2"] = "bh2",
    corrector: bool = True,
    lower_at_end: bool = False,
) -> StepCoefficients:
    """UniPC of order 1, 2 or 3; the first steps and the last ones have lower orders.

    Args:
      process: alpha and sigma.
      times: from `grid`.
      order: of the predictor; with the corrector the whole is of one order more.
      variant: B(h) = -h or e^-h - 1, which differ in the second order's weights alone.
      corrector: whether there is one.
      lower_at_end: whether the last steps are of lower order even where sigma is above 0, for few steps.

    Raises:
      UsageError: an order that there is not.
    """
    if not 1 <= order <= 3:
        raise UsageError(f"order is {order}; expected 1 to 3")
    alpha, sigma = process.coefficients(times, np)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    steps = len(times) - 1
    rows = StepCoefficients.empty(times[:-1], history=order + 1)
    used = [0] * steps
    for i in range(steps):
        corrected = np.zeros(rows.point.shape[1])
        if i == 0 or not corrector:
            corrected[CURRENT] = 1.0
        else:
            step = _step(alpha, sigma, lam, i - 1, used[i - 1], order + 1, variant, seen=True)
            corrected[ANCHOR], corrected[HISTORY:-1] = step
        used[i] = min(order, i + 1, steps - i if lower_at_end else order)
        while used[i] > 1 and not (np.isfinite(lam[i - used[i] + 1]) and np.isfinite(lam[i + 1])):
            used[i] -= 1
        kept, weights = _step(alpha, sigma, lam, i, used[i], order + 1, variant, seen=False)
        rows.anchor[i] = corrected
        rows.point[i] = kept * corrected
        rows.point[i, HISTORY:-1] += weights
    return rows


def _step(
    alpha: np.ndarray, sigma: np.ndarray, lam: np.ndarray, i: int, order: int, columns: int, variant: str, seen: bool
) -> tuple[float, np.ndarray]:
    """Weights of x and of the history in step i; where the D of its end is `seen`, that is the first of the history."""
    h = lam[i + 1] - lam[i] if np.isfinite(lam[i]) else np.inf
    share = -np.expm1(-h)
    at = lambda m: np.eye(columns)[m + seen]
    weights = share * at(0)
    ratios = [(lam[i - m] - lam[i]) / h for m in range(1, order)]
    differences = [(at(m) - at(0)) / ratio for m, ratio in enumerate(ratios, 1)]
    if seen:
        ratios.append(1.0)
        differences.append(np.eye(columns)[0] - at(0))
    if differences and np.isfinite(h):
        rho = _rho(np.array(ratios), h, variant)
        b = -h if variant == "bh1" else np.expm1(-h)
        weights = weights - b * sum(r * difference for r, difference in zip(rho, differences))
    return sigma[i + 1] / sigma[i], alpha[i + 1] * weights


def _rho(ratios: np.ndarray, h: float, variant: str) -> np.ndarray:
    """The weights of the differences, R rho = b of theorem 3.1; of one difference 1/2, which has the same order."""
    if len(ratios) == 1:
        return np.array([0.5])
    b = -h if variant == "bh1" else np.expm1(-h)
    right, phi = [], np.expm1(-h) / -h - 1
    for k in range(1, len(ratios) + 1):
        right.append(phi * math.factorial(k) / b)
        phi = phi / -h - 1 / math.factorial(k + 1)
    return np.linalg.solve(np.vander(ratios, increasing=True).T, np.array(right))
