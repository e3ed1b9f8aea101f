"""Weights of the loss over times, and the density that training times are drawn from.

The loss of an example is weight(t) |F - target|^2, F being what the network predicts. The same loss of D has the weight
divided by c_out^2, so that each weighting here says what it is of noise prediction too (Hang et al. 2023, 2303.09556,
section 3.2; Kingma & Gao 2023, 2303.00848, table 1).
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import Kind, component
from arch_jax.ops.diffusion.predictions import Noise, Preconditioning
from arch_jax.ranges import Positive, Signed

Weighting = Annotated[Any, Kind("weighting")]
TrainingTimes = Annotated[Any, Kind("training_times")]


@dataclasses.dataclass(frozen=True)
class WeightingBase:
    """The parts that every weighting has; a new one overrides `__call__`."""

    def __call__(self, process: Any, prediction: Any, time: Any, alpha: Any, sigma: Any, made: Preconditioning) -> Any:
        """The weight of |F - target|^2.

        Args:
          process: of the diffusion.
          prediction: F.
          time, alpha, sigma: of each example.
          made: how D is made of F there.
        """
        raise TypeError(f"{type(self).__name__} must say what an error weighs")

    def check(self, process: Any, prediction: Any) -> None:
        """Refuses a process or a prediction that it is not defined for.

        Raises:
          UsageError: it is not.
        """


@component("simple", kind="weighting")
@dataclasses.dataclass(frozen=True)
class Simple(WeightingBase):
    """1 for the error of F itself, whatever it is (Ho et al. 2020, 2006.11239, equation 14).

    Of noise prediction it is L_simple; of EDM's preconditioned one it is lambda = 1 / c_out^2 (2206.00364, section 5).
    """

    def __call__(self, process: Any, prediction: Any, time: Any, alpha: Any, sigma: Any, made: Preconditioning) -> Any:
        return jnp.ones_like(alpha)


@component("snr", kind="weighting")
@dataclasses.dataclass(frozen=True)
class SNR(WeightingBase):
    """SNR for the error of D: that of noise prediction, of any F (Salimans & Ho 2022, 2202.00512, section 4).

    Attributes:
      at_least: the smallest weight; 1 is their truncated SNR, max(SNR, 1), with which noise alone still counts.
    """

    at_least: float = 0.0

    def __call__(self, process: Any, prediction: Any, time: Any, alpha: Any, sigma: Any, made: Preconditioning) -> Any:
        # c_out^2 max(SNR, least), without a division by sigma where c_out has it as a factor.
        return jnp.maximum(jnp.square(alpha / sigma * made.out), self.at_least * jnp.square(made.out))


@component("min_snr", kind="weighting")
@dataclasses.dataclass(frozen=True)
class MinSNR(WeightingBase):
    """min(SNR, gamma) for the error of D (Hang et al. 2023, 2303.09556, equation 6).

    So min(SNR, gamma) / SNR for noise prediction, and min(SNR, gamma) / (SNR + 1) for v: a weight that ignores what is
    predicted is another loss.

    Attributes:
      gamma: the largest weight.
    """

    gamma: Positive = 5.0

    def __call__(self, process: Any, prediction: Any, time: Any, alpha: Any, sigma: Any, made: Preconditioning) -> Any:
        return jnp.minimum(jnp.square(alpha / sigma * made.out), self.gamma * jnp.square(made.out))


@component("vlb", kind="weighting")
@dataclasses.dataclass(frozen=True)
class VLB(WeightingBase):
    """That of the variational bound, T (SNR(t - 1) - SNR(t)) / 2 for the error of D (2107.00630, equation 14).

    With it the loss is, in nats an entry and up to terms without the network, a Monte Carlo estimate of the bound for
    reverse steps of the posterior's variance (2006.11239, equation 12). The first step, whose SNR before it is
    infinite, has the weight SNR(1): the decoder's, with the variance of its own noise.
    """

    def __call__(self, process: Any, prediction: Any, time: Any, alpha: Any, sigma: Any, made: Preconditioning) -> Any:
        before_alpha, before_sigma = process.coefficients(jnp.maximum(time - 1, 0))
        ratio = lambda a, s: jnp.square(a / jnp.where(s > 0, s, 1))
        now = ratio(alpha, sigma)
        step = jnp.where(before_sigma > 0, ratio(before_alpha, before_sigma) - now, now)
        return 0.5 * process.last * step * jnp.square(made.out)

    def check(self, process: Any, prediction: Any) -> None:
        if not process.discrete:
            raise UsageError(
                f"weighting is vlb and the process {type(process).__name__} is continuous; expected a chain of steps, "
                "such as process=variance_preserving"
            )


@dataclasses.dataclass(frozen=True)
class TrainingTimesBase:
    """The parts that every density of training times has; a new one overrides `quantile`."""

    def check(self, process: Any) -> None:
        """Refuses a process that has not the times it is a density of.

        Raises:
          UsageError: it has not.
        """

    def quantile(self, process: Any, part: jax.Array) -> jax.Array:
        """Time below which a part of the density lies, for parts in (0, 1)."""
        raise TypeError(f"{type(self).__name__} must say which times it draws")

    def draw(self, process: Any, key: jax.Array, count: int) -> jax.Array:
        """`count` times."""
        return self.quantile(process, jax.random.uniform(key, (count,), minval=1e-7))

    def spread(self, process: Any, count: int) -> jax.Array:
        """`count` times at equal quantiles, for validation: they are the same whoever asks."""
        return self.quantile(process, (jnp.arange(count) + 0.5) / count)


@component("uniform_times", kind="training_times")
@dataclasses.dataclass(frozen=True)
class UniformTimes(TrainingTimesBase):
    """Every time equally often: each step of a chain, or between the first and last of a continuous process."""

    def quantile(self, process: Any, part: jax.Array) -> jax.Array:
        if process.discrete:
            return jnp.clip(jnp.floor(part * process.last), 0, process.last - 1) + 1
        return process.first + part * (process.last - process.first)


@component("log_normal", kind="training_times")
@dataclasses.dataclass(frozen=True)
class LogNormal(TrainingTimesBase):
    """Noise levels with log sigma ~ N(mean, std^2), for processes with time = sigma (2206.00364, table 1).

    Attributes:
      mean: P_mean, of log sigma.
      std: P_std.
    """

    mean: Signed = -1.2
    std: Positive = 1.2

    def check(self, process: Any) -> None:
        # At two times, as one may be sigma by chance.
        levels = np.array([process.last / 2, process.last])
        if not np.array_equal(process.coefficients(levels, np), [np.ones(2), levels]):
            raise UsageError(
                f"times are log_normal and the time of {type(process).__name__} is no noise level; expected "
                "process=noise_level, or times=uniform_times"
            )

    def quantile(self, process: Any, part: jax.Array) -> jax.Array:
        self.check(process)
        return jnp.exp(self.mean + self.std * jax.scipy.special.ndtri(part))


@component("logit_normal", kind="training_times")
@dataclasses.dataclass(frozen=True)
class LogitNormal(TrainingTimesBase):
    """t = logistic(N(mean, std^2)): times in the middle more often (Esser et al. 2024, 2403.03206, equation 19).

    Attributes:
      mean: m, negative for more times near the data.
      std: s.
    """

    mean: Signed = 0.0
    std: Positive = 1.0

    def check(self, process: Any) -> None:
        if process.last != 1 or process.discrete:
            raise UsageError(
                f"times are logit_normal and those of {type(process).__name__} go up to {process.last:g}; expected a "
                "process of times in [0, 1], such as process=rectified_flow"
            )

    def quantile(self, process: Any, part: jax.Array) -> jax.Array:
        self.check(process)
        return jax.nn.sigmoid(self.mean + self.std * jax.scipy.special.ndtri(part))


def noise_weight(weighting: WeightingBase, process: Any, prediction: Any, time: jax.Array) -> jax.Array:
    """The weight of |noise estimate - noise|^2 that a weighting amounts to, so that different F can be compared.

    Args:
      weighting: of the loss.
      process, prediction: of the diffusion.
      time: traced times.
    """
    alpha, sigma = process.coefficients(time)
    rates = process.rates(time) if prediction.uses_rates else None
    made = prediction.preconditioning(alpha, sigma, rates)
    as_noise = Noise().preconditioning(alpha, sigma)
    return weighting(process, prediction, time, alpha, sigma, made) * jnp.square(as_noise.out / made.out)
