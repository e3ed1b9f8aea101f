"""PNDM: linear multistep methods whose step is DDIM's (Liu et al. 2022, 2202.09778).

The transfer phi(x, e, t, t') = alpha' (x - sigma e) / alpha + sigma' e (equation 11) takes the place of an Euler step;
the noise e it is given is that of a classical method: Adams' of order 4 once three noises before are known, and until
then Runge and Kutta's of order 4, with four calls a step, or methods of lower order.
"""

from typing import Any, Literal

import numpy as np

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.solve import ANCHOR, CURRENT, HISTORY, StepCoefficients

#: Weights of the last noises, the newest first: Adams' methods of order 1 to 4 (equation 12).
ADAMS = {1: (1.0,), 2: (1.5, -0.5), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def pndm(process: Any, times: np.ndarray, warm_up: Literal["heun", "runge_kutta"] = "heun") -> StepCoefficients:
    """PNDM (algorithm 2), or with "heun" the form without Runge and Kutta's steps that latent diffusion uses ("PLMS").

    Args:
      process: alpha and sigma.
      times: from `grid`.
      warm_up: first steps: one of Heun's, then Adams' of order 2 and 3: n + 1 calls for n steps; or three of Runge and
        Kutta's, with 9 calls more than steps.

    Raises:
      UsageError: a grid that begins with noise alone, where no noise says anything of the data.
    """
    if process.coefficients(np.float64(times[0]), np)[0] == 0:
        raise UsageError(
            f"PNDM combines noises, and {type(process).__name__} begins with noise alone (alpha = 0); expected another "
            "sampler, such as unipc"
        )
    return _runge_kutta(process, times) if warm_up == "runge_kutta" else _heun(process, times)


def _transfer(process: Any, begin: float, end: float) -> tuple[float, float]:
    """Weights of x and of the noise in phi."""
    (alpha, sigma), (next_alpha, next_sigma) = (process.coefficients(np.float64(t), np) for t in (begin, end))
    return float(next_alpha / alpha), float(next_sigma - next_alpha * sigma / alpha)


def _store_noise(rows: StepCoefficients, process: Any) -> None:
    """The history is of noises, (x - alpha D) / sigma."""
    alpha, sigma = process.coefficients(rows.times, np)
    rows.stored = np.stack([1 / sigma, -alpha / sigma], axis=1)


def _heun(process: Any, times: np.ndarray) -> StepCoefficients:
    steps = len(times) - 1
    at = [0, 1, *range(1, steps)] if steps > 1 else [0]
    rows = StepCoefficients.empty(times[at], history=5)
    _store_noise(rows, process)
    for row, i in enumerate(at):
        if row == 1:  # the first step again, with the mean of the noises at both its ends
            kept, noise = _transfer(process, times[0], times[1])
            rows.point[row, ANCHOR], rows.point[row, HISTORY : HISTORY + 2] = kept, noise / 2
            rows.anchor[row] = rows.point[row]
            continue
        kept, noise = _transfer(process, times[i], times[i + 1])
        rows.point[row, CURRENT] = kept
        # The noise at the predicted end of the first step is none of Adams'.
        known = [call for call in range(row, -1, -1) if call != 1][:4]
        for call, weight in zip(known, ADAMS[len(known)]):
            rows.point[row, HISTORY + row - call] = noise * weight
        if row == 0 and steps > 1:
            rows.anchor[row, CURRENT] = 1.0
        else:
            rows.anchor[row] = rows.point[row]
    return rows


def _runge_kutta(process: Any, times: np.ndarray) -> StepCoefficients:
    steps = len(times) - 1
    warm = min(3, steps - 1)
    at, first = [], []  # times of the calls; which of them are at a step's beginning
    for i in range(steps):
        first.append(len(at))
        half = (times[i] + times[i + 1]) / 2
        at += [times[i], half, half, times[i + 1]] if i < warm else [times[i]]
    rows = StepCoefficients.empty(np.array(at), history=13)
    _store_noise(rows, process)
    for i in range(steps):
        kept, noise = _transfer(process, times[i], times[i + 1])
        row = first[i]
        if i >= warm:
            known = first[i::-1][:4]
            rows.point[row, CURRENT] = kept
            for call, weight in zip(known, ADAMS[len(known)]):
                rows.point[row, HISTORY + row - call] = noise * weight
            rows.anchor[row] = rows.point[row]
            continue
        to_half = _transfer(process, times[i], at[row + 1])
        for stage, (x, e) in enumerate((to_half, to_half, (kept, noise))):
            rows.point[row + stage, ANCHOR if stage else CURRENT] = x
            rows.point[row + stage, HISTORY] = e
            rows.anchor[row + stage, ANCHOR if stage else CURRENT] = 1.0
        last = rows.point[row + 3]
        last[ANCHOR] = kept
        last[HISTORY : HISTORY + 4] = noise * np.array([1, 2, 2, 1]) / 6
        rows.anchor[row + 3] = last
    return rows
