"""Heun's method on the probability-flow ODE: two calls a step, and one in the last (Karras et al. 2022, 2206.00364)."""

from typing import Any

import numpy as np

from arch_jax.ops.diffusion.solve import ANCHOR, CURRENT, HISTORY, Rows


def heun(process: Any, times: np.ndarray) -> Rows:
    """Algorithm 1 of 2206.00364, in y = x / alpha and r = sigma / alpha, with dy/dr = (y - D) / r.

        y~ = y + (r' - r) (y - D(y; r)) / r                                        Euler
        y' = y + (r' - r) / 2 ((y - D(y; r)) / r + (y~ - D(y~; r')) / r')          the trapezoidal rule

    The last step, to r' = 0, is Euler's alone. 2 n - 1 calls of the network for n steps, or 2 n where the grid ends
    above 0.

    Args:
      process: alpha and sigma.
      times: from `grid`.
    """
    alpha, sigma = process.coefficients(times, np)
    ratio = sigma / alpha
    steps, corrected = len(times) - 1, int(ratio[-1] > 0)
    at = [i + second for i in range(steps) for second in ((0, 1) if i < steps - 1 or corrected else (0,))]
    rows = Rows.empty(times[at], history=2)
    row = 0
    for i in range(steps):
        step = ratio[i + 1] - ratio[i]
        rows.point[row, CURRENT] = alpha[i + 1] / alpha[i] * (1 + step / ratio[i])
        rows.point[row, HISTORY] = -alpha[i + 1] * step / ratio[i]
        if ratio[i + 1] == 0:
            rows.anchor[row] = rows.point[row]
            break
        rows.anchor[row, CURRENT] = 1.0
        rows.point[row + 1, ANCHOR] = alpha[i + 1] / alpha[i] * (1 + step / (2 * ratio[i]))
        rows.point[row + 1, CURRENT] = step / (2 * ratio[i + 1])
        rows.point[row + 1, HISTORY] = -alpha[i + 1] * step / (2 * ratio[i + 1])
        rows.point[row + 1, HISTORY + 1] = -alpha[i + 1] * step / (2 * ratio[i])
        rows.anchor[row + 1] = rows.point[row + 1]
        row += 2
    return rows
