"""Scaling laws: loss as a function of parameters and tokens, fitted to measured points.

Sources: Hoffmann et al. 2022 (2203.15556) and Kaplan et al. 2020 (2001.08361). The published points that the fit is
compared with were read off the former's figure 4 by Besiroglu et al. 2024 (2404.10102), who find other constants
in them than it prints.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from arch_jax.data.base import check_whole
from arch_jax.errors import UsageError
from arch_jax.study.scaling.measurements import Measurements

#: Huber's delta, in the logarithm of the loss: a point that is 0.1 % off counts as an outlier already.
DELTA = 1e-3
#: Fewer resamples than this have no percentiles to speak of.
FEWEST_RESAMPLES = 20

_NAMES = ("E", "A", "B", "alpha", "beta")
_LARGEST = 700.0  # exp of more is not a finite number

Number = float | int | np.ndarray


@dataclasses.dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2).

    Attributes:
      E: irreducible loss: the entropy of the text, in nats.
      A: scale of the term in N.
      B: scale of the term in D.
      alpha: exponent of N.
      beta: exponent of D.
      objective: the sum of Huber's losses at the optimum.
      count: the number of points it was fitted to.
      delta: Huber's.
      intervals: name -> (low, high): 95 % of the bootstrap, for the five and for `a` and `b`; empty without one.
      resamples: (E, A, B, alpha, beta) of each resample, "resamples 5"; None without a bootstrap.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    objective: float
    count: int
    delta: float = DELTA
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    resamples: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def a(self) -> float:
        """The compute-optimal N grows as C^a: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """The compute-optimal D grows as C^b: alpha / (alpha + beta)."""
        return self.alpha / (self.alpha + self.beta)

    def loss(self, parameters: Number, tokens: Number) -> Any:
        """L of N parameters trained on D tokens, in nats; of arrays, element by element."""
        return self.E + self.A / np.power(parameters, self.alpha) + self.B / np.power(tokens, self.beta)

    def optimal(self, flops: Number) -> tuple[Any, Any]:
        """The N and D of least loss under C = 6 N D (equation 4); of an array, arrays.

        Raises:
          UsageError: `flops` is not positive and finite; the law's exponents are not, so that it has no optimum.
        """
        budget = np.asarray(flops, np.float64)
        if not (np.isfinite(budget) & (budget > 0)).all():
            raise UsageError(f"a budget is {flops} FLOPs; expected a positive number")
        if self.alpha <= 0 or self.beta <= 0:
            raise UsageError(
                f"the law has no compute-optimal size: its exponents are alpha {self.alpha:.4g} and beta "
                f"{self.beta:.4g}, and both must be positive"
            )
        # In logarithms: A and B may be too large for their ratio's powers.
        scale = (math.log(self.alpha * self.A) - math.log(self.beta * self.B)) / (self.alpha + self.beta)
        half = np.log(budget / 6)
        found = np.exp(scale + self.a * half), np.exp(self.b * half - scale)
        return found if isinstance(flops, np.ndarray) else (float(found[0]), float(found[1]))

    def to_json(self) -> dict[str, Any]:
        """All but the resamples, as JSON data."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "resamples"}
        intervals = {name: list(ends) for name, ends in self.intervals.items()}
        return fields | {"a": self.a, "b": self.b, "intervals": intervals}


def fit(
    points: Measurements,
    delta: float = DELTA,
    bootstrap: int = 0,
    seed: int = 0,
    say: Callable[[int, int], None] | None = None,
) -> Law:
    """The law that minimises the sum of Huber's losses of log L (Hoffmann et al. 2022, section 3.3 and appendix D.3).

    min over a, b, e, alpha, beta of  sum_i Huber_delta(LSE(a - alpha log N_i, b - beta log D_i, e) - log L_i),
    A, B, E = exp(a), exp(b), exp(e), by L-BFGS from the paper's grid of starts. The sum, not the mean, which
    2404.10102 shows to end the search too early.

    Args:
      points: at least 5, of at least 3 different N and 3 different D.
      delta: where Huber's loss turns from quadratic to linear.
      bootstrap: the number of resamples of the points for the intervals; 0 disables them.
      seed: of the resampling.
      say: called with (done, total) as searches end.

    Raises:
      UsageError: too few points, or ones that can't determine the law; delta not positive; bootstrap from 1 to 19.
    """
    check_whole("bootstrap", bootstrap, 0)
    if not 0 < delta < math.inf:
        raise UsageError(f"delta is {delta}; expected a positive number, such as {DELTA}")
    if 0 < bootstrap < FEWEST_RESAMPLES:
        raise UsageError(f"bootstrap is {bootstrap}; expected 0, or at least {FEWEST_RESAMPLES} for an interval")
    check_determined(points, len(_NAMES))
    n, d, target = np.log(points.parameters), np.log(points.tokens), np.log(points.loss)
    # About their means, scale and exponent hardly depend on each other, and L-BFGS needs a tenth of the steps.
    centre = n.mean(), d.mean()
    n, d = n - centre[0], d - centre[1]
    exponents, scales = (0, 0.5, 1, 1.5, 2), range(0, 26, 5)
    grid = np.array(list(itertools.product((-1, -0.5, 0, 0.5, 1), exponents, exponents, scales, scales)), np.float64)
    e, alpha, beta, a, b = grid.T
    starts = np.stack([e, a - alpha * centre[0], b - beta * centre[1], alpha, beta], -1)
    # Of the 36 scales (a, b) for the same e, alpha and beta, all but a few begin orders of magnitude away from any
    # loss: only the best is followed. On the published points the other 4,375 searches find nothing better.
    objective = _hoffmann(n, d, target, delta)
    starts = _best_of_each(objective, starts, 36)
    total = len(starts) + bootstrap
    told = (lambda done: say(done, total)) if say is not None else (lambda done: None)
    best, least = _minimise(objective, starts, told)
    generator, found = np.random.default_rng(seed), []
    while len(found) < bootstrap:
        drawn = generator.integers(len(points), size=len(points))
        if min(len(np.unique(n[drawn])), len(np.unique(d[drawn]))) < 3:
            continue
        resampled = _hoffmann(n[drawn], d[drawn], target[drawn], delta)
        found.append(_constants(_minimise(resampled, best[None], lambda done: None)[0], centre))
        told(len(starts) + len(found))
    resamples = np.array(found) if found else None
    return Law(*_constants(best, centre), least * delta, len(points), delta, _intervals(resamples), resamples)


def caveats(law: Law, points: Measurements) -> list[str]:
    """Caveats of a fitted law, as sentences; empty for a law that its points determine."""
    found, share = [], law.E / float(points.loss.min())
    if share < 1e-3:
        found.append(
            "these points do not determine E, which the search puts at 0: they are too few, or too far from where the "
            "loss levels off"
        )
    if law.alpha <= 0 or law.beta <= 0:
        found.append(f"the exponents alpha {law.alpha:.3g} and beta {law.beta:.3g} are not both positive: no optimum")
    for name in ("a", "b"):
        low, high = law.intervals.get(name, (0.0, 0.0))
        if high - low > 0.5:
            found.append(f"the exponent {name} lies between {low:.2f} and {high:.2f}: these points do not determine it")
    return found


@dataclasses.dataclass(frozen=True)
class Kaplan:
    """L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D (Kaplan et al. 2020, equation 1.5).

    Attributes:
      N_c: scale of N.
      D_c: scale of D.
      alpha_N: exponent of N.
      alpha_D: exponent of D.
      objective: the sum of Huber's losses of log L at the optimum.
      count: the number of points it was fitted to.
    """

    N_c: float
    D_c: float
    alpha_N: float
    alpha_D: float
    objective: float
    count: int

    def loss(self, parameters: Number, tokens: Number) -> Any:
        """L of N parameters trained on D tokens, in nats; of arrays, element by element."""
        ratio = self.alpha_N / self.alpha_D
        return (np.power(self.N_c / parameters, ratio) + self.D_c / tokens) ** self.alpha_D

    def loss_of_parameters(self, parameters: Number) -> Any:
        """L(N) = (N_c / N)^alpha_N, without a limit of tokens (equation 1.1)."""
        return np.power(self.N_c / parameters, self.alpha_N)

    def loss_of_tokens(self, tokens: Number) -> Any:
        """L(D) = (D_c / D)^alpha_D, without a limit of parameters (equation 1.2)."""
        return np.power(self.D_c / tokens, self.alpha_D)

    def to_json(self) -> dict[str, Any]:
        """The attributes, as JSON data."""
        return dataclasses.asdict(self)


def fit_kaplan(points: Measurements, delta: float = DELTA) -> Kaplan:
    """Kaplan's law that minimises the sum of Huber's losses of log L: the same objective as `fit`, so the two compare.

    Args:
      points: at least 4, of at least 3 different N and 3 different D.
      delta: where Huber's loss turns from quadratic to linear.

    Raises:
      UsageError: too few points, or ones that can't determine the law; delta not positive.
    """
    if not 0 < delta < math.inf:
        raise UsageError(f"delta is {delta}; expected a positive number, such as {DELTA}")
    check_determined(points, 4)
    n, d, target = np.log(points.parameters), np.log(points.tokens), np.log(points.loss)
    centre = n.mean(), d.mean()
    objective = _kaplan(n - centre[0], d - centre[1], target, delta)
    exponents, shares = (0.03, 0.1, 0.3, 1.0), (-2.0, -1.0, -0.5, 0.0)
    scales = [target.mean() + share for share in shares]
    starts = np.array(list(itertools.product(exponents, exponents, scales, scales)))[:, [2, 3, 0, 1]]
    positive = (1e-6, None)
    starts = _best_of_each(objective, starts, len(scales) ** 2)
    best, least = _minimise(objective, starts, lambda done: None, [(None, None), (None, None), positive, positive])
    p, q, alpha_n, alpha_d = best
    scale_n, scale_d = _exp(p / alpha_n + centre[0]), _exp(q / alpha_d + centre[1])
    return Kaplan(scale_n, scale_d, float(alpha_n), float(alpha_d), least * delta, len(points))


def check_determined(points: Measurements, parameters: int) -> None:
    """Checks that the points can determine a law of so many parameters.

    Raises:
      UsageError: there are fewer points than that, or fewer than 3 different N or D: a curve of three constants
        (E, A, alpha) needs three places.
    """
    if len(points) < parameters:
        raise UsageError(
            f"there are {len(points)} points; a law of {parameters} parameters needs at least {parameters}"
        )
    for name in ("parameters", "tokens"):
        different = len(np.unique(getattr(points, name)))
        if different < 3:
            raise UsageError(f"the points have {different} different numbers of {name}; a law needs at least 3")


def _hoffmann(n: np.ndarray, d: np.ndarray, target: np.ndarray, delta: float) -> Callable:
    """(e, a, b, alpha, beta) -> the objective divided by delta, which brings it near 1, and its gradient."""

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        e, a, b, alpha, beta = x
        terms = np.stack([np.full_like(n, e), a - alpha * n, b - beta * d])
        value, weights = _log_sum_exp(terms)
        total, slope = _huber(value - target, delta)
        by_term = slope * weights
        return total, np.array([*by_term.sum(1), -(by_term[1] @ n), -(by_term[2] @ d)])

    return objective


def _kaplan(n: np.ndarray, d: np.ndarray, target: np.ndarray, delta: float) -> Callable:
    """(p, q, alpha_N, alpha_D) -> the same of Kaplan's law, where p = alpha_N log N_c and q = alpha_D log D_c."""

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        p, q, alpha_n, alpha_d = x
        terms = np.stack([(p - alpha_n * n) / alpha_d, q / alpha_d - d])
        value, weights = _log_sum_exp(terms)
        total, slope = _huber(alpha_d * value - target, delta)
        by_alpha_d = value - weights[0] * terms[0] - weights[1] * q / alpha_d
        gradient = [slope @ weights[0], slope @ weights[1], -(slope * weights[0]) @ n, slope @ by_alpha_d]
        return total, np.array(gradient)

    return objective


def _log_sum_exp(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the first axis, and its gradient."""
    largest = terms.max(0)
    weights = np.exp(terms - largest)
    total = weights.sum(0)
    return largest + np.log(total), weights / total


def _huber(residual: np.ndarray, delta: float) -> tuple[float, np.ndarray]:
    """The sum of Huber's losses, divided by delta, and its gradient."""
    size = np.abs(residual)
    total = np.where(size <= delta, residual**2 / (2 * delta), size - delta / 2).sum()
    return float(total), np.clip(residual / delta, -1, 1)


def _best_of_each(objective: Callable, starts: np.ndarray, group: int) -> np.ndarray:
    """Of every `group` starts in a row, the one where the objective is least."""
    values = np.array([objective(start)[0] for start in starts]).reshape(-1, group)
    return starts.reshape(-1, group, starts.shape[-1])[np.arange(len(values)), values.argmin(1)]


def _minimise(
    objective: Callable, starts: np.ndarray, told: Callable[[int], None], bounds: list | None = None
) -> tuple[np.ndarray, float]:
    """The minimum of the objective over all L-BFGS searches, run to the last digits: the place and its value."""
    from scipy.optimize import minimize

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20}
    best = None
    with _one_thread():
        for done, start in enumerate(starts, 1):
            found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            if best is None or found.fun < best.fun:
                best = found
            told(done)
    return best.x, float(best.fun)


def _one_thread() -> contextlib.AbstractContextManager:
    """One thread for linear algebra: shared among threads, L-BFGS's tiny products take ten times as long."""
    return _libraries().limit(limits=1, user_api="blas")


@functools.cache
def _libraries() -> Any:
    # Looking for the loaded libraries takes as long as a short search.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _constants(x: np.ndarray, centre: tuple[float, float]) -> tuple[float, float, float, float, float]:
    """(E, A, B, alpha, beta) of what was searched for about the means of log N and log D."""
    e, a, b, alpha, beta = map(float, x)
    return _exp(e), _exp(a + alpha * centre[0]), _exp(b + beta * centre[1]), alpha, beta


def _intervals(resamples: np.ndarray | None) -> dict[str, tuple[float, float]]:
    """The middle 95 % of the resamples, for the constants and the exponents of the optimum."""
    if resamples is None:
        return {}
    alpha, beta = resamples[:, 3], resamples[:, 4]
    columns = dict(zip(_NAMES, resamples.T)) | {"a": beta / (alpha + beta), "b": alpha / (alpha + beta)}
    ends = {name: np.percentile(column, (2.5, 97.5)) for name, column in columns.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def _exp(x: float) -> float:
    return math.exp(min(x, _LARGEST))
