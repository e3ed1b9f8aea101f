"""Langevin dynamics at the noise levels of a process: alone (annealed, NCSN), and between a predictor's steps.

With the score s = (alpha D - x) / sigma^2 of x_t, a step x + e s + sqrt(2 e) z moves towards the law of x_t without
leaving its noise level. Steps are told by e / sigma^2, which no unit of the data changes: from 1 on a step overshoots
the noise itself, whatever the data is.
"""

from typing import Any, Literal

import numpy as np

from arch_jax.errors import UsageError
from arch_jax.ops.diffusion.ancestral import ddpm, forward_std
from arch_jax.ops.diffusion.solve import CURRENT, HISTORY, StepCoefficients


def predictor_corrector(
    process: Any,
    times: np.ndarray,
    predictor: Literal["reverse_diffusion", "ancestral"] = "reverse_diffusion",
    correctors: int = 1,
    snr: float = 0.16,
    norms: Literal["expected", "own"] = "expected",
) -> StepCoefficients:
    """Predictor-corrector sampling (Song et al. 2021, 2011.13456, appendix G, algorithms 1 to 5).

    After each step of the predictor but the last, which goes to time 0 and is the denoising, `correctors` steps of
    Langevin dynamics at the level that it reached, with e = 2 (alpha_t / alpha_next)^2 (snr |z| / |s|)^2; the first
    factor is alpha_i of a chain (algorithm 5), and 1 of a variance exploding process (algorithm 4).

    The norms are means over the batch in the authors' code, so that there a sample depends on those beside it. Here
    "expected" has their expectation where x_t is mostly noise, |z| / |s| = sigma; "own" has those of each example.

    Args:
      process: alpha and sigma.
      times: from `grid`.
      predictor: the reverse diffusion (equation 46), which takes the forward step's drift and noise backwards, or the
        ancestral step with the posterior's variance, as of DDPM.
      correctors: Langevin steps after each predictor's.
      snr: r, the ratio of norms of the gradient's part and the noise's that a step aims at.
      norms: "expected" or "own".

    Raises:
      UsageError: reverse diffusion of a process that begins with noise alone.
    """
    alpha, sigma = process.coefficients(times, np)
    if predictor == "ancestral":
        steps = ddpm(process, times)
    else:
        if alpha[0] == 0:
            raise UsageError(
                "predictor is 'reverse_diffusion' and the process begins with noise alone (alpha = 0), from where its "
                "drift is infinite; expected predictor='ancestral'"
            )
        steps = reverse_diffusion(process, times)
    count = len(times) - 1
    call = np.concatenate([[0], np.repeat(np.arange(1, count), correctors + 1)]).astype(int)
    predicts = np.concatenate([[True], np.tile(np.arange(correctors + 1) == correctors, count - 1)])
    rows = StepCoefficients.empty(times[call])
    rows.point[predicts] = steps.point
    at = call[~predicts]
    size = 2 * (alpha[at] / alpha[at + 1] * snr) ** 2
    rows.point[~predicts] = _langevin(alpha[at], sigma[at], np.minimum(size, 1))
    if norms == "own":
        rows.adaptive = np.zeros(len(call))
        rows.adaptive[~predicts] = size
    return rows.single()


def reverse_diffusion(process: Any, times: np.ndarray) -> StepCoefficients:
    """x' = (2 - k) x + g^2 s + g z, with x = k x' + g z the forward step (2011.13456, equation 46).

    Of a variance exploding process x + (sigma^2 - sigma'^2) s + ..., of DDPM's chain (2 - sqrt(1 - beta)) x + beta s +
    ... (appendix E). The last step has no noise.
    """
    alpha, sigma = process.coefficients(times, np)
    drawn = forward_std(process, times)
    pull = (drawn / sigma[:-1]) ** 2
    rows = StepCoefficients.empty(times[:-1])
    rows.point[:, CURRENT] = 2 - alpha[:-1] / alpha[1:] - pull
    rows.point[:, HISTORY] = pull * alpha[:-1]
    rows.point[:, -1] = np.where(np.arange(len(drawn)) < len(drawn) - 1, drawn, 0)
    return rows.single()


def annealed_langevin(
    process: Any, times: np.ndarray, correctors: int = 5, step_size: float | None = None, denoise: bool = True
) -> StepCoefficients:
    """Annealed Langevin dynamics (Song & Ermon 2019, 1907.05600, algorithm 1), of any process.

    x + e s + sqrt(2 e) z with e = step_size sigma^2, `correctors` times at each level; x / alpha goes on to the next.

    Args:
      process: alpha and sigma.
      times: of the levels, and the end.
      correctors: T, steps at each level.
      step_size: e / sigma^2. Of the paper's algorithm 1, whose alpha_i is 2 e, it is epsilon / (2 sigma_L^2); of
        technique 4's epsilon it is epsilon / sigma_L^2. None takes that of technique 4 (`technique_4`).
      denoise: whether the end is x + sigma^2 s, by one more call (Song & Ermon 2020, 2006.09011, algorithm 1).

    Raises:
      UsageError: a process that begins with noise alone, or a single level without a step size.
    """
    check_first_level(process, times[0])
    alpha, sigma = process.coefficients(times, np)
    levels = len(times) - 1
    ratios = (sigma / alpha)[:-1]
    if step_size is None:
        if levels < 2:
            raise UsageError("steps is 1, one noise level, and step_size none; expected a number, such as 0.1")
        step_size = technique_4(float((ratios[0] / ratios[-1]) ** (1 / (levels - 1))), correctors)
    call = np.append(np.repeat(np.arange(levels), correctors), [levels - 1] * denoise).astype(int)
    rows = StepCoefficients.empty(times[call])
    rows.point[:] = _langevin(alpha[call], sigma[call], np.full(len(call), step_size))
    # The last of each level moves on, and without denoising the last of all to x / alpha.
    ends = correctors * np.arange(1, levels + 1) - 1
    rows.point[ends] *= (np.where(denoise & (np.arange(levels) == levels - 1), 1, alpha[1:] / alpha[:-1]))[:, None]
    if denoise:
        rows.point[-1] = 0
        rows.point[-1, HISTORY] = 1.0
    return rows.single()


def check_first_level(process: Any, time: float) -> None:
    """Refuses a first level that is noise alone.

    Raises:
      UsageError: alpha is 0 at that time.
    """
    if np.isinf(process.ratios(time)):
        raise UsageError(
            f"annealed Langevin dynamics takes x / alpha from level to level, and {type(process).__name__} begins with "
            "noise alone (alpha = 0); expected sampler=predictor_corrector with sampler.predictor=ancestral, or "
            "another process"
        )


def technique_4(gamma: float, correctors: int) -> float:
    """The step size whose variance stays nearest to the noise level's (2006.09011, proposition 3 and technique 4).

    With h = e / sigma^2 and levels that shrink by gamma, of data that is one point the variance after T steps is

        (1 - h)^(2 T) (gamma^2 - 2 h / (1 - (1 - h)^2)) + 2 h / (1 - (1 - h)^2)

    in units of sigma^2, where 2 h / (1 - (1 - h)^2) = 2 / (2 - h) is that which Langevin dynamics has in the end.

    Args:
      gamma: ratio of a level to the next.
      correctors: T.
    """
    sizes = np.exp(np.linspace(np.log(1e-6), 0, 200_001))[:-1]
    limit = 2 / (2 - sizes)
    variance = (1 - sizes) ** (2 * correctors) * (gamma**2 - limit) + limit
    return float(sizes[np.argmin(np.abs(variance - 1))])


def _langevin(alpha: np.ndarray, sigma: np.ndarray, size: np.ndarray) -> np.ndarray:
    """x + e s + sqrt(2 e) z as weights, of e = size sigma^2."""
    rows = StepCoefficients.empty(alpha)
    rows.point[:, CURRENT] = 1 - size
    rows.point[:, HISTORY] = size * alpha
    rows.point[:, -1] = np.sqrt(2 * size) * sigma
    return rows.point
