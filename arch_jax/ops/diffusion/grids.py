"""Times at which a sampler calls the network: `steps` of a process's times, from noise to data, and the end after them.

With fewer steps than the process was trained with, their spacing matters as much as the sampler (Lin et al. 2023,
2305.08891, section 3.4): "leading" never sees the noisiest step.
"""

from typing import Any, Literal

import numpy as np

from arch_jax.errors import UsageError

Spacing = Literal["trailing", "leading", "linspace", "quadratic", "karras", "exponential"]


def grid(
    process: Any, steps: int, spacing: Spacing = "trailing", *, offset: int = 0, rho: float = 7.0, final: str = "zero"
) -> np.ndarray:
    """`steps` + 1 decreasing times: one for each step, and that where the last one ends.

    Of a discrete process with T steps (times 1 to T; a network is told one less):

        trailing     T (1 - i / n), rounded                        2305.08891, table 2
        leading      i (T // n) + 1 + offset, reversed             DDIM (2010.02502, appendix D.3, "linear")
        linspace     n numbers from 1 to T, rounded                improved DDPM (2102.09672, section 3.3)
        quadratic    1 + n squares from 0 to .8 T, rounded down    DDIM ("quadratic"); equal ones are taken once

    and of a continuous one the same without rounding, between its first and its last time. Of both:

        karras       sigma / alpha = (max^(1/rho) + i / (n - 1) (min^(1/rho) - max^(1/rho)))^rho    2206.00364, eq. 5
        exponential  log(sigma / alpha) in equal differences

    Args:
      process: of `arch_jax.ops.diffusion.processes`.
      steps: n.
      spacing: one of those above.
      offset: added to the times of "leading".
      rho: of "karras"; 1 is equal differences of sigma / alpha, and large numbers approach "exponential".
      final: the last time: "zero", the data; or "first", the smallest that is trained, where a continuous process is
        stopped before its score grows without bound. Spacings that reach it by themselves then have n + 1 numbers.

    Raises:
      UsageError: no step, more than a discrete process has, or times that are the same after rounding.
    """
    if steps < 1:
        raise UsageError(f"steps is {steps}; expected at least 1")
    if process.discrete and steps > process.last:
        raise UsageError(f"steps is {steps}, and the process has {process.last:g} of them; expected at most as many")
    if final not in ("zero", "first"):
        raise UsageError(f"final is {final!r}; expected 'zero' or 'first'")
    first, last = process.first, process.last
    # The numbers of a spacing that ends at the first time itself, and does not stop there again.
    count = steps + (final == "first" and spacing not in ("trailing", "leading"))
    i = np.arange(steps, dtype=np.float64)
    if spacing in ("karras", "exponential"):
        times = _by_ratio(process, count, spacing, rho)
    elif spacing == "trailing":
        times = last * (1 - i / steps)
    elif spacing == "leading":
        between = last // steps if process.discrete else (last - first) / steps
        times = first + offset + between * i[::-1]
    elif spacing == "linspace":
        # Rounded as the numbers that the network is told, from 0: ties are even of those.
        times = np.linspace(last - first, 0, count)
        times = first + (np.round(times) if process.discrete else times)
    else:
        reach = 0.8 * last if process.discrete else last - first
        times = np.linspace(np.sqrt(reach), 0, count) ** 2
        # Its smallest numbers are often one step of the chain, which is taken once.
        times = first + (np.unique(np.floor(times + 1e-9))[::-1] if process.discrete else times)
    if process.discrete and spacing not in ("karras", "exponential"):
        times = np.round(times)
    return checked(process, times if count > steps else np.append(times, first if final == "first" else 0.0))


def _by_ratio(process: Any, steps: int, spacing: str, rho: float) -> np.ndarray:
    """Times from equal differences of a power or of the logarithm of sigma / alpha."""
    largest, smallest = process.ratios(process.last), process.ratios(process.first)
    if not np.isfinite(largest):
        raise UsageError(
            f"spacing is {spacing!r} and the process ends in noise alone (sigma / alpha is infinite); expected "
            "'trailing' or 'linspace'"
        )
    part = np.linspace(0, 1, steps)
    if spacing == "exponential":
        ratios = np.exp(np.log(largest) + part * (np.log(smallest) - np.log(largest)))
    else:
        ratios = (largest ** (1 / rho) + part * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho
    return process.time_of(ratios)


def checked(process: Any, times: np.ndarray) -> np.ndarray:
    """Times as they are, if they only decrease and lie within the process.

    Raises:
      UsageError: a time that is not smaller than the one before it, or out of range.
    """
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2 or not np.isfinite(times).all():
        raise UsageError(f"times are {times!r:.80}; expected at least 2 finite numbers in a row")
    if times[0] > process.last * (1 + 1e-12) or times[-1] < 0:
        raise UsageError(f"times go from {times[0]:g} to {times[-1]:g}; expected {process.last:g} to 0")
    wrong = np.flatnonzero(np.diff(times) >= 0)
    if len(wrong):
        raise UsageError(
            f"time {times[wrong[0]]:g} is followed by {times[wrong[0] + 1]:g}; expected smaller ones only: fewer "
            "steps, or another spacing"
        )
    return times
