"""Laws of data whose every noisy marginal, score and denoised estimate is known: what samplers are checked against."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians with axes along the coordinates, in NumPy's float64.

    x_t = alpha x_0 + sigma noise is a mixture too, of means alpha m_k and variances alpha^2 v_k + sigma^2, and within a
    component x_0 given x_t is normal: so D(x) = E[x_0 | x_t] is known.

    Attributes:
      means: "components features".
      variances: "components features".
      weights: of the components, which add up to 1.
    """

    means: Any
    variances: Any
    weights: Any

    @staticmethod
    def gaussian(mean: Any, variance: Any) -> "Mixture":
        """One normal law with independent coordinates."""
        mean = np.atleast_1d(np.asarray(mean, np.float64))
        return Mixture(mean[None], np.broadcast_to(variance, mean.shape).astype(np.float64)[None], np.ones(1))

    @staticmethod
    def ring(modes: int = 8, radius: float = 1.0, std: float = 0.1) -> "Mixture":
        """Equally likely modes on a circle in the plane."""
        angle = 2 * np.pi * np.arange(modes) / modes
        means = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return Mixture(means, np.full((modes, 2), std**2), np.full(modes, 1 / modes))

    def component(self, number: int) -> "Mixture":
        """The law of one component alone: that of a class."""
        return Mixture(self.means[number][None], self.variances[number][None], np.ones(1))

    @property
    def mean(self) -> np.ndarray:
        """Of the law, "features"."""
        return self.weights @ self.means

    @property
    def variance(self) -> np.ndarray:
        """Of each coordinate, "features"."""
        return self.weights @ (self.variances + self.means**2) - self.mean**2

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Points of the law, "count features"."""
        which = generator.choice(len(self.weights), size=count, p=self.weights)
        return self.means[which] + np.sqrt(self.variances[which]) * generator.standard_normal((count, len(self.mean)))

    def noisy(self, alpha: Any, sigma: Any) -> "Mixture":
        """The law of x_t."""
        return Mixture(alpha * self.means, alpha**2 * self.variances + sigma**2, self.weights)

    def shares(self, x: np.ndarray) -> np.ndarray:
        """Probability of each component given a point, "... components"."""
        log = self._log_terms(x)
        log = log - log.max(-1, keepdims=True)
        return np.exp(log) / np.exp(log).sum(-1, keepdims=True)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """log p(x) in nats."""
        log = self._log_terms(x)
        top = log.max(-1, keepdims=True)
        return (top + np.log(np.exp(log - top).sum(-1, keepdims=True)))[..., 0]

    def score(self, x: np.ndarray) -> np.ndarray:
        """The gradient of log p(x)."""
        each = (self.means - x[..., None, :]) / self.variances
        return (self.shares(x)[..., None] * each).sum(-2)

    def denoised(self, x: np.ndarray, alpha: Any, sigma: Any) -> np.ndarray:
        """D = E[x_0 | x_t = x]."""
        noisy = self.noisy(alpha, sigma)
        gain = alpha * self.variances / noisy.variances
        each = self.means + gain * (x[..., None, :] - noisy.means)
        return (noisy.shares(x)[..., None] * each).sum(-2)

    def _log_terms(self, x: np.ndarray) -> np.ndarray:
        away = np.asarray(x, np.float64)[..., None, :] - self.means
        each = -0.5 * away**2 / self.variances - 0.5 * np.log(2 * np.pi * self.variances)
        return np.log(self.weights) + each.sum(-1)
