"""One step back at a time: DDPM's ancestral sampling, DDIM, and Euler's method, which is DDIM without noise.

All are the same step (Song et al. 2020, 2010.02502, equation 12) from (alpha, sigma) to (alpha', sigma'),

    x' = alpha' D + sqrt(sigma'^2 - std^2) (x - alpha D) / sigma + std z

and differ in std. That the two add up in variance is what keeps every marginal right, whatever std is.
"""

from typing import Any, Literal

import numpy as np

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.solve import CURRENT, HISTORY, RAW, StepCoefficients


def posterior_std(process: Any, times: np.ndarray) -> np.ndarray:
    """Standard deviation of q(x' | x, x_0) for every step of a grid: sigma' sqrt(1 - (r' / r)^2), r = sigma / alpha.

    Of DDPM's chain it is sqrt((1 - alpha_bar') / (1 - alpha_bar) beta) (2006.11239, equation 7), also where a step
    jumps many of the chain's; of a variance exploding one k-diffusion's "ancestral" sigma_up.
    """
    alpha, sigma = process.coefficients(times, np)
    # (r' / r)^2 without dividing by an alpha of 0.
    part = (sigma[1:] * alpha[:-1] / (alpha[1:] * sigma[:-1])) ** 2
    return sigma[1:] * np.sqrt(np.maximum(1 - part, 0))


def forward_std(process: Any, times: np.ndarray) -> np.ndarray:
    """Standard deviation of q(x | x'): sqrt(sigma^2 - (alpha / alpha')^2 sigma'^2), which is sqrt(beta) in DDPM."""
    alpha, sigma = process.coefficients(times, np)
    return np.sqrt(np.maximum(sigma[:-1] ** 2 - (alpha[:-1] / alpha[1:] * sigma[1:]) ** 2, 0))


def ddim(
    process: Any, times: np.ndarray, eta: float = 0.0, direction: Literal["clipped", "raw"] = "clipped"
) -> StepCoefficients:
    """DDIM (Song et al. 2020, 2010.02502, equations 12 and 16): eta 0 is deterministic, eta 1 is DDPM.

    Without noise it is Euler's method on dx/dr = (x - D) / r in x / alpha and r = sigma / alpha (their equation 14; eq.
    1 of 2206.00364), and on straight paths Euler's method in t.

    Args:
      process: alpha and sigma.
      times: from `grid`.
      eta: factor of the posterior's standard deviation.
      direction: which D gives the noise that is kept, where D is clipped: the clipped one, or the network's own, as
        diffusers has it by default.

    Raises:
      UsageError: an eta outside of [0, 1].
    """
    if not 0 <= eta <= 1:
        raise UsageError(f"eta is {eta}; expected 0 (no noise) to 1 (as much as DDPM)")
    alpha, sigma = process.coefficients(times, np)
    std = eta * posterior_std(process, times)
    kept = np.sqrt(np.maximum(sigma[1:] ** 2 - std**2, 0)) / sigma[:-1]
    rows = StepCoefficients.empty(times[:-1])
    rows.point[:, CURRENT] = kept
    rows.point[:, HISTORY] = alpha[1:]
    rows.point[:, HISTORY if direction == "clipped" else RAW] -= kept * alpha[:-1]
    rows.point[:, -1] = std
    return rows.single()


def ddpm(process: Any, times: np.ndarray, variance: Literal["small", "large", "learned"] = "small") -> StepCoefficients:
    """Ancestral sampling (Ho et al. 2020, 2006.11239, algorithm 2), without noise at the last step.

    Args:
      process: alpha and sigma.
      times: from `grid`.
      variance: of a step: the posterior's ("small"), that of the forward step, beta ("large"), or of the network,
        between the two (improved DDPM, 2102.09672, equation 15).
    """
    rows = ddim(process, times, eta=1.0)
    small, large = posterior_std(process, times), forward_std(process, times)
    if variance == "large":
        rows.point[:, -1] = np.where(small > 0, large, 0)
        rows.single()
    elif variance == "learned":
        # The posterior's variance is 0 at the last step: clipped to that of the one before, as the authors do.
        floor = np.where(small > 0, small, small[-2] if len(small) > 1 else large[-1])
        rows.bounds = 2 * np.log(np.stack([floor, large], axis=1))
    return rows


def ddim_inversion(process: Any, times: np.ndarray) -> StepCoefficients:
    """DDIM's steps from data to noise: the noise that the sampler without eta would begin with (section 4.3).

    With e the network's noise at (x, t), x' = alpha' (x - sigma e) / alpha + sigma' e, for t' > t; the first call is at
    the smallest time that is trained, as at time 0 there is no noise to tell. Each step takes the noise of its
    beginning, and sampling that of its end: the round trip errs by the first order of the steps.

    Args:
      process: alpha and sigma.
      times: from `grid`, which is followed backwards.
    """
    times = times[::-1]
    alpha, sigma = process.coefficients(times, np)
    at = np.maximum(times[:-1], process.first)
    told_alpha, told_sigma = process.coefficients(at, np)
    moved = sigma[1:] - alpha[1:] * sigma[:-1] / alpha[:-1]  # weight of the noise, (x - alpha D) / sigma at the call
    rows = StepCoefficients.empty(at)
    rows.point[:, CURRENT] = alpha[1:] / alpha[:-1] + moved / told_sigma
    rows.point[:, HISTORY] = -moved * told_alpha / told_sigma
    return rows.single()
