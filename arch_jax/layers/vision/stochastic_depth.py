"""Stochastic depth (Huang et al. 2016, 1603.09382): residual branches dropped at random in training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError


class StochasticDepth(nn.Module):
    """x, or 0 for some of the examples in training; the others are divided by the probability of being kept.

    So the mean is x, and evaluation is unchanged. Sampling needs `rngs={"dropout": key}`.

    Attributes:
      rate: probability of dropping the branch, from 0 to below 1.
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UsageError(f"stochastic_depth is {self.rate}; expected a fraction from 0 to below 1, such as 0.1")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "batch *rest"], train: bool = False) -> Float[Array, "batch *rest"]:
        if not train or self.rate == 0:
            return x
        stays = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (len(x),))
        return jnp.where(stays.reshape(-1, *(1,) * (x.ndim - 1)), x / (1 - self.rate), 0)


def rising(rate: float, layers: int) -> list[float]:
    """The rate of each layer, from 0 at the first to `rate` at the last in equal steps (1603.09382, equation 4)."""
    return [rate * layer / max(1, layers - 1) for layer in range(layers)]
