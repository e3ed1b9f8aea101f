"""Statistics of a few seeds: a mean with its interval, a paired difference, and a correction for many comparisons."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arch_jax.errors import UsageError

#: Fewer values than this give no interval: with two, Student's factor is 12.7, too wide to be of use.
LEAST = 3

Numbers = Sequence[float | int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its interval.

    Attributes:
      mean: of the values.
      low: lower end of the interval; None with fewer than 3 values.
      high: upper end; None with fewer than 3 values.
      deviation: the sample's standard deviation (divided by count - 1), on the scale of the interval; None for a
        single value.
      count: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    deviation: float | None
    count: int

    @property
    def half(self) -> float | None:
        """Half the interval's width; None without an interval."""
        return _half(self.low, self.high)

    @property
    def symmetric(self) -> bool:
        """True if the mean is the interval's middle, as on a linear scale, or if there is no interval."""
        if self.low is None or self.high is None:
            return True
        return math.isclose(self.mean - self.low, self.high - self.mean, rel_tol=1e-6, abs_tol=1e-9 * abs(self.mean))

    def contains(self, value: float | int) -> bool:
        """True if a value lies between the ends, or on one of them.

        Raises:
          UsageError: it has no ends.
        """
        if self.low is None or self.high is None:
            raise UsageError(f"{self.count} values have no interval; expected at least {LEAST}")
        return bool(self.low <= value <= self.high)

    def __str__(self) -> str:
        """Such as "1.9037 ± 0.0085", "0.021 (0.013 to 0.034)", or "1.9037 (2 seeds)" without an interval."""
        if not self.symmetric:
            return f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})"
        return _text(self.mean, self.half, self.count)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean of paired differences, its interval and its p-value.

    Attributes:
      mean: of value - baseline.
      low: lower end of the interval; None with fewer than 3 pairs.
      high: upper end; None with fewer than 3 pairs.
      p: two-sided probability of a mean at least this far from zero, were the true one zero; None with fewer than 3.
      count: number of pairs.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    count: int

    @property
    def half(self) -> float | None:
        """Half the interval's width; None without an interval."""
        return _half(self.low, self.high)

    def __str__(self) -> str:
        """Such as "+0.112 ± 0.024", or "+0.112 (2 seeds)" without an interval."""
        return _text(self.mean, self.half, self.count, sign="+")


def interval(values: Numbers, level: float = 0.95) -> Interval:
    """The mean of independent values, with its interval by Student's t (1908).

    Args:
      values: one a seed; at least one, all finite.
      level: probability that the interval holds the true mean, were the values normal: 0 < level < 1.

    Returns:
      The interval; without ends where there are fewer than 3 values.

    Raises:
      UsageError: no values, one that is not finite, or a level out of range.
    """
    found = _finite("value", values)
    mean, deviation = _moments(found)
    factor = _factor(len(found), level)
    if factor is None or deviation is None:
        return Interval(mean, None, None, deviation, len(found))
    half = factor * deviation / math.sqrt(len(found))
    return Interval(mean, mean - half, mean + half, deviation, len(found))


#: Scale -> the values it is for, in words and as a test; to it; and back from it, from its ends on.
SCALES: dict[str, tuple[str, Any, Any, Any]] = {
    "linear": ("any", lambda x: True, lambda x: x, lambda y: y),
    "log": ("positive ones", lambda x: x > 0, math.log, math.exp),
    "arcsine": (
        "shares from 0 to 1",
        lambda x: 0 <= x <= 1,
        lambda x: math.asin(math.sqrt(x)),
        lambda y: math.sin(min(max(y, 0.0), math.pi / 2)) ** 2,
    ),
}


def prediction(values: Numbers, level: float = 0.95, scale: str = "linear") -> Interval:
    """The interval in which one further value lies, by Student's t: mean +- t s sqrt(1 + 1/n).

    Args:
      values: one a seed; at least three, all finite.
      level: probability that it holds the next value, were all normal: 0 < level < 1.
      scale: where they are taken to be normal. "linear": as they are. "log": their logarithms, for what differs by
        factors, such as a loss near 0. "arcsine": the arcsine of the square root, for shares such as an accuracy,
        whose variance goes to 0 at 0 and at 1. Mean and ends are mapped back, so that they stay within the range.

    Returns:
      The interval around the mean. Equal values have one of no width.

    Raises:
      UsageError: fewer than three values, one that is not finite or has no place on the scale, an unknown scale, or a
        level out of range.
    """
    if scale not in SCALES:
        raise UsageError(f"scale is {scale!r}; expected one of {', '.join(map(repr, SCALES))}")
    wanted, allowed, forth, back = SCALES[scale]
    found = _finite("value", values)
    for value in found:
        if not allowed(value):
            raise UsageError(f"{value:g} has no place on the scale {scale!r}; expected {wanted}")
    mean, deviation = _moments(np.array([forth(value) for value in found]))
    factor = _factor(len(found), level)
    if factor is None or deviation is None:
        raise UsageError(f"there are {len(found)} values; expected at least {LEAST} to predict a further one")
    half = factor * deviation * math.sqrt(1 + 1 / len(found))
    return Interval(back(mean), back(mean - half), back(mean + half), deviation, len(found))


def paired(values: Numbers, baseline: Numbers, level: float = 0.95) -> Difference:
    """The mean of value - baseline, paired by position (the same seed), by Student's t on the differences.

    Pairs share their data order and initial values, so that what both have in common cancels.

    Args:
      values: one a seed; all finite.
      baseline: the same seeds in the same order; all finite.
      level: probability that the interval holds the true difference: 0 < level < 1.

    Returns:
      The difference; without ends and p where there are fewer than 3 pairs. Differences that are all equal have an
      interval of no width, with p = 1 where they are zero and p = 0 where they are not.

    Raises:
      UsageError: the two are not equally many, there are none, one is not finite, or a level out of range.
    """
    from scipy.special import stdtr

    left, right = _finite("value", values), _finite("baseline's value", baseline)
    if len(left) != len(right):
        raise UsageError(f"there are {len(left)} values and {len(right)} of the baseline; expected as many of each")
    mean, deviation = _moments(left - right)
    count, factor = len(left), _factor(len(left), level)
    if factor is None or deviation is None:
        return Difference(mean, None, None, None, count)
    if deviation == 0:
        return Difference(mean, mean, mean, float(mean == 0), count)
    error = deviation / math.sqrt(count)
    p = 2 * float(stdtr(count - 1, -abs(mean) / error))
    return Difference(mean, mean - factor * error, mean + factor * error, p, count)


def holm(ps: Sequence[float | int | None]) -> list[float | None]:
    """Step-down adjustment of p-values for many comparisons (Holm 1979, A Simple Sequentially Rejective ...).

    The k-th smallest of m is multiplied by m - k + 1, is no less than the one before it, and at most 1. Those at most
    alpha may be called real with a probability of at most alpha that any of them is not.

    Args:
      ps: p-values from 0 to 1; None for no p-value, which doesn't count as a comparison.

    Returns:
      The adjusted ones in the same order; None stays None.

    Raises:
      UsageError: a p-value that is not from 0 to 1.
    """
    there = [i for i, p in enumerate(ps) if p is not None]
    for i in there:
        if not 0 <= ps[i] <= 1:
            raise UsageError(f"a p-value is {ps[i]}; expected 0 to 1")
    adjusted: list[float | None] = [None] * len(ps)
    least = 0.0
    for rank, i in enumerate(sorted(there, key=lambda i: ps[i])):
        least = max(least, min(1.0, (len(there) - rank) * ps[i]))
        adjusted[i] = float(least)
    return adjusted


def against(
    others: Sequence[Mapping[int, float]], reference: Mapping[int, float]
) -> list[tuple[Difference | None, float | None]]:
    """Each of several against one reference: the difference over the seeds that both have, and p by Holm's correction.

    Args:
      others: seed -> value, of each.
      reference: seed -> value.

    Returns:
      (difference, corrected p) of each; both None without a seed in common.
    """
    found: list[Difference | None] = []
    for own in others:
        both = sorted(own.keys() & reference.keys())
        found.append(paired([own[seed] for seed in both], [reference[seed] for seed in both]) if both else None)
    return list(zip(found, holm([None if one is None else one.p for one in found])))


def _finite(name: str, values: Numbers) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or found.size == 0:
        raise UsageError(f"there are {found.size} {name}s in {found.ndim} dimensions; expected a list of at least one")
    if not np.isfinite(found).all():
        raise UsageError(f"a {name} is {found[~np.isfinite(found)][0]}; expected finite numbers")
    return found


def _moments(found: np.ndarray) -> tuple[float, float | None]:
    """Mean and sample deviation; equal values deviate by exactly zero, which rounding would hide."""
    if (found == found[0]).all():
        return float(found[0]), (0.0 if len(found) > 1 else None)
    return float(found.mean()), float(found.std(ddof=1))


def _factor(count: int, level: float) -> float | None:
    """Student's two-sided quantile for so many values; None if there are too few."""
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise UsageError(f"level is {level}; expected more than 0 and less than 1, such as 0.95")
    return float(stdtrit(count - 1, (1 + level) / 2)) if count >= LEAST else None


def _half(low: float | None, high: float | None) -> float | None:
    return None if low is None or high is None else (high - low) / 2


def _text(mean: float, half: float | None, count: int, sign: str = "") -> str:
    """The mean to the second significant digit of its half-width; to five digits without one."""
    if half is None:
        return f"{mean:{sign}.5g}" + (" (1 seed)" if count == 1 else f" ({count} seeds)")
    if half == 0:
        return f"{mean:{sign}.5g} ± 0"
    # By way of the formatted number: 0.0996 rounds to 0.10, whose second digit stands one place further left.
    decimals = 1 - int(f"{half:.1e}".split("e")[1])
    size = max(abs(mean), half)
    if 1e-4 <= size < 1e7 and decimals <= 9:
        places = max(decimals, 0)
        return f"{round(mean, decimals):{sign}.{places}f} ± {round(half, decimals):.{places}f}"
    digits = max(0, int(f"{size:.0e}".split("e")[1]) + decimals)
    return f"{mean:{sign}.{min(digits, 9)}e} ± {half:.1e}"
