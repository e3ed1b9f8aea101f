"""Heun's method on the probability-flow ODE: two calls a step, and one in the last (Karras et al. 2022, 2206.00364)."""

from typing import Any

import numpy as np

from arch_jax.ops.diffusion.solve import ANCHOR, CURRENT, HISTORY, StepCoefficients


def heun(process: Any, times: np.ndarray) -> StepCoefficients:
    """Algorithm 1 of 2206.00364, in y = x / alpha and r = sigma / alpha, with dy/dr = (y - D) / r.

        y~ = y + (r' - r) (y - D(y; r)) / r                                        Euler
        y' = y + (r' - r) / 2 ((y - D(y; r)) / r + (y~ - D(y~; r')) / r')          the trapezoidal rule

    A process of straight paths is taken in x and sigma, where the same holds and its first time is no infinity; of
    another process that begins with noise alone (r infinite) the first step is Euler's, as is the last one, to r' = 0.
    2 n - 1 calls of the network for n steps, or 2 n where the grid ends above 0.

    Args:
      process: alpha and sigma.
      times: from `grid`.
    """
    alpha, sigma = process.coefficients(times, np)
    scale, level = (np.ones_like(alpha), sigma) if process.straight else (alpha, _ratio(alpha, sigma))
    steps = len(times) - 1
    single = [level[i + 1] == 0 or np.isinf(level[i]) for i in range(steps)]
    rows = StepCoefficients.empty(
        times[[i + second for i in range(steps) for second in range(2 - single[i])]], history=2
    )
    row = 0
    for i in range(steps):
        if single[i]:
            rows.point[row, CURRENT] = sigma[i + 1] / sigma[i]
            rows.point[row, HISTORY] = alpha[i + 1] - alpha[i] * sigma[i + 1] / sigma[i]
            rows.anchor[row] = rows.point[row]
            row += 1
            continue
        step, grown = level[i + 1] - level[i], scale[i + 1] / scale[i]
        rows.point[row, CURRENT] = grown * (1 + step / level[i])
        rows.point[row, HISTORY] = -scale[i + 1] * step / level[i]
        rows.anchor[row, CURRENT] = 1.0
        rows.point[row + 1, ANCHOR] = grown * (1 + step / (2 * level[i]))
        rows.point[row + 1, CURRENT] = step / (2 * level[i + 1])
        rows.point[row + 1, HISTORY] = -scale[i + 1] * step / (2 * level[i + 1])
        rows.point[row + 1, HISTORY + 1] = -scale[i + 1] * step / (2 * level[i])
        rows.anchor[row + 1] = rows.point[row + 1]
        row += 2
    return rows


def _ratio(alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return sigma / alpha
