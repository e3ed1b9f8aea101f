"""The output F of a denoising network as an estimate of the noise, the data, or a mix of the two.

Given x_t = alpha x_0 + sigma noise, each is an affine function of the denoised estimate D = E[x_0 | x_t],

    D = c_skip x_t + c_out F(c_in x_t)                                (Karras et al. 2022, 2206.00364, equation 7)

so that any one can be converted into any other, and a sampler that is written for D serves all of them.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import Kind, component
from arch_jax.ranges import Positive

Prediction = Annotated[Any, Kind("prediction")]


class Preconditioning(NamedTuple):
    """D = skip x + out F(scale x); numbers, or arrays of one for each example."""

    scale: Any
    skip: Any
    out: Any


@dataclasses.dataclass(frozen=True)
class PredictionBase:
    """The parts that every prediction has; a new one overrides `preconditioning` and `target`."""

    #: Whether it needs d alpha / dt and d sigma / dt.
    uses_rates: ClassVar[bool] = False
    #: Whether x_t of noise alone (alpha = 0) leaves it defined.
    at_pure_noise: ClassVar[bool] = True

    def preconditioning(self, alpha: Any, sigma: Any, rates: Any = None, xp: Any = jnp) -> Preconditioning:
        """The factors that make D of x_t and the network's output.

        Args:
          alpha, sigma: of the process at the time.
          rates: (d alpha / dt, d sigma / dt), where `uses_rates`.
          xp: numpy or jax.numpy.
        """
        raise TypeError(f"{type(self).__name__} must say how D follows from it")

    def target(self, clean: Any, noise: Any, alpha: Any, sigma: Any, rates: Any = None) -> Any:
        """The value of F at which D would be the clean example itself: what training regresses on."""
        raise TypeError(f"{type(self).__name__} must say what it predicts")

    def check(self, process: Any) -> None:
        """Refuses a process at whose last time the prediction says nothing of the data.

        Raises:
          UsageError: a process that ends in noise alone, with a prediction of noise or score.
        """
        alpha, _ = process.coefficients(float(process.last), np)
        if not self.at_pure_noise and alpha == 0:
            near = "v or prediction=x0" if process.discrete else "flow or prediction=v"
            raise UsageError(
                f"prediction is {type(self).__name__} and the process ends in noise alone (alpha = 0), where it says "
                f"nothing of the data; expected prediction={near}"
            )


@component("noise", kind="prediction")
@dataclasses.dataclass(frozen=True)
class Noise(PredictionBase):
    """F = the noise (Ho et al. 2020, 2006.11239, equation 11)."""

    at_pure_noise: ClassVar[bool] = False

    def preconditioning(self, alpha: Any, sigma: Any, rates: Any = None, xp: Any = jnp) -> Preconditioning:
        return Preconditioning(xp.ones_like(alpha), 1 / alpha, -sigma / alpha)

    def target(self, clean: Any, noise: Any, alpha: Any, sigma: Any, rates: Any = None) -> Any:
        return noise


@component("x0", kind="prediction")
@dataclasses.dataclass(frozen=True)
class Data(PredictionBase):
    """F = D, the data (2006.11239, section 3.2)."""

    def preconditioning(self, alpha: Any, sigma: Any, rates: Any = None, xp: Any = jnp) -> Preconditioning:
        return Preconditioning(xp.ones_like(alpha), xp.zeros_like(alpha), xp.ones_like(alpha))

    def target(self, clean: Any, noise: Any, alpha: Any, sigma: Any, rates: Any = None) -> Any:
        return clean


@component("v", kind="prediction")
@dataclasses.dataclass(frozen=True)
class Velocity(PredictionBase):
    """F = v = alpha noise - sigma x_0 (Salimans & Ho 2022, 2202.00512, appendix D).

    There alpha^2 + sigma^2 = 1; of another process D = (alpha x - sigma v) / (alpha^2 + sigma^2).
    """

    def preconditioning(self, alpha: Any, sigma: Any, rates: Any = None, xp: Any = jnp) -> Preconditioning:
        square = alpha**2 + sigma**2
        return Preconditioning(xp.ones_like(alpha), alpha / square, -sigma / square)

    def target(self, clean: Any, noise: Any, alpha: Any, sigma: Any, rates: Any = None) -> Any:
        return alpha * noise - sigma * clean


@component("score", kind="prediction")
@dataclasses.dataclass(frozen=True)
class Score(PredictionBase):
    """F = the score of x_t, grad log p_t = (alpha D - x) / sigma^2 (Song et al. 2021, 2011.13456, equation 7)."""

    at_pure_noise: ClassVar[bool] = False

    def preconditioning(self, alpha: Any, sigma: Any, rates: Any = None, xp: Any = jnp) -> Preconditioning:
        return Preconditioning(xp.ones_like(alpha), 1 / alpha, sigma**2 / alpha)

    def target(self, clean: Any, noise: Any, alpha: Any, sigma: Any, rates: Any = None) -> Any:
        return -noise / sigma


@component("flow", kind="prediction")
@dataclasses.dataclass(frozen=True)
class Flow(PredictionBase):
    """F = u = dx_t / dt along the path, alpha' x_0 + sigma' noise (Lipman et al. 2022, 2210.02747, theorem 3).

    On straight paths it is noise - x_0, in the direction in which t grows.
    """

    uses_rates: ClassVar[bool] = True

    def preconditioning(self, alpha: Any, sigma: Any, rates: Any = None, xp: Any = jnp) -> Preconditioning:
        alpha_rate, sigma_rate = rates
        wronskian = sigma_rate * alpha - sigma * alpha_rate
        return Preconditioning(xp.ones_like(alpha), sigma_rate / wronskian, -sigma / wronskian)

    def target(self, clean: Any, noise: Any, alpha: Any, sigma: Any, rates: Any = None) -> Any:
        return rates[0] * clean + rates[1] * noise

    def check(self, process: Any) -> None:
        alpha, _ = process.coefficients(np.array([process.last]), np)
        if process.discrete and alpha[0] == 0:  # log alpha falls to it, between two steps, at no finite rate
            raise UsageError(
                "prediction is Flow and the process ends in noise alone, at no finite rate (a chain with "
                "zero_terminal_snr); expected prediction=v or prediction=x0"
            )


@component("preconditioned", kind="prediction")
@dataclasses.dataclass(frozen=True)
class Preconditioned(PredictionBase):
    """EDM's: F has unit variance in and out at every noise level (2206.00364, table 1 and appendix B.6).

    With r = sigma / alpha and s the data's standard deviation: c_in = 1 / sqrt(s^2 + r^2), c_skip = s^2 / (s^2 + r^2),
    c_out = r s / sqrt(s^2 + r^2), each for x_t / alpha.

    Attributes:
      data_std: s; .5 of images in [-1, 1].
    """

    data_std: Positive = 0.5

    def preconditioning(self, alpha: Any, sigma: Any, rates: Any = None, xp: Any = jnp) -> Preconditioning:
        # In alpha and sigma, so that nothing is infinite where alpha is 0.
        variance = (alpha * self.data_std) ** 2 + sigma**2
        root = xp.sqrt(variance)
        return Preconditioning(1 / root, alpha * self.data_std**2 / variance, sigma * self.data_std / root)

    def target(self, clean: Any, noise: Any, alpha: Any, sigma: Any, rates: Any = None) -> Any:
        root = jnp.sqrt((alpha * self.data_std) ** 2 + sigma**2)
        return (sigma * clean - alpha * self.data_std**2 * noise) / (self.data_std * root)


def converted(
    output: Any, x: Any, given: Prediction, wanted: Prediction, alpha: Any, sigma: Any, rates: Any = None, xp: Any = jnp
) -> Any:
    """A network's output of one prediction as another.

    Args:
      output: F of `given`.
      x: x_t, which both are of; `c_in` is no part of it.
      given, wanted: predictions.
      alpha, sigma, rates: of the process at the time, broadcastable to x.
      xp: numpy or jax.numpy.
    """
    one = given.preconditioning(alpha, sigma, rates, xp)
    other = wanted.preconditioning(alpha, sigma, rates, xp)
    return (one.skip - other.skip) / other.out * x + one.out / other.out * output
