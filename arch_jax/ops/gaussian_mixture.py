"""Mixtures of equally likely Gaussians of equal variance: their density and score, as ground truth for models."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["mixture_log_density", "mixture_score", "mixture_score_reference"]


def mixture_log_density(
    x: Float[Array, "*batch size"], centres: Float[Array, "modes size"], std: Float[Array, ""] | float
) -> Float[Array, "*batch"]:
    """log p(x) in nats of p = mean_k N(centre_k, std^2 I).

    Args:
      x: points.
      centres: of the components.
      std: of each component, in every coordinate.
    """
    modes, size = centres.shape
    return (
        jax.nn.logsumexp(_exponents(x, centres, std), axis=-1)
        - math.log(modes)
        - size * jnp.log(std * math.sqrt(2 * math.pi))
    )


def mixture_score(
    x: Float[Array, "*batch size"],
    centres: Float[Array, "modes size"],
    std: Float[Array, ""] | Float[Array, "*batch 1"] | float,
) -> Float[Array, "*batch size"]:
    """The gradient of log p(x): (E[centre | x] - x) / std^2, the mean being over the components given x.

    With normal noise added to the points the mixture stays one, of the variance std^2 + noise^2: so this is the score
    of noisy points too.

    Args:
      x: points.
      centres: of the components.
      std: of each component, in every coordinate; one for all points or, as "batch 1", one for each.
    """
    share = jax.nn.softmax(_exponents(x, centres, std), axis=-1)
    return (share @ centres - x) / jnp.square(std)


def mixture_score_reference(x, centres, std):
    """`mixture_score` as it is defined: sums of densities and of their gradients, one component after another."""
    density, gradient = 0.0, 0.0
    for centre in centres:
        away = x - centre
        each = jnp.exp(-0.5 * jnp.sum(away**2, axis=-1, keepdims=True) / std**2)
        density, gradient = density + each, gradient - each * away / std**2
    return gradient / density


def _exponents(x: Array, centres: Array, std: Array | float) -> Array:
    away = x[..., None, :] - centres
    return -0.5 * jnp.sum(jnp.square(away), axis=-1) / jnp.square(std)
