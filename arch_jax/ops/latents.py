"""Distributions of latent variables: divergences, likelihoods, bounds, sparsity, and interpolation between codes."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError

__all__ = [
    "bernoulli_log_likelihood",
    "bernoulli_sparsity",
    "draw_gaussian",
    "gaussian_kl",
    "gaussian_log_density",
    "importance_bound",
    "largest_only",
    "linear_interpolation",
    "spherical_interpolation",
]


def gaussian_kl(
    mean: Float[Array, "*batch latent"], log_variance: Float[Array, "*batch latent"]
) -> Float[Array, "*batch"]:
    """KL(N(mean, variance) || N(0, 1)) in nats, summed over the components, at least 0 (1312.6114, appendix B)."""
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.expm1(log_variance) - log_variance, axis=-1)


def draw_gaussian(
    noise: Float[Array, "*draws latent"],
    mean: Float[Array, "*batch latent"],
    log_variance: Float[Array, "*batch latent"],
) -> Float[Array, "*draws latent"]:
    """mean + standard deviation * noise: a reparameterised sample (1312.6114, section 2.4).

    Args:
      noise: standard normal; may have more leading axes than the mean, for several samples.
      mean, log_variance: of the distribution.
    """
    return mean + jnp.exp(0.5 * log_variance) * noise


def gaussian_log_density(
    x: Float[Array, "*batch size"], mean: Float[Array, "*other"], log_variance: Float[Array, "*any"]
) -> Float[Array, "*out"]:
    """log N(x; mean, variance) in nats, independent over the last axis and summed over it; arguments broadcast."""
    each = jnp.square(x - mean) * jnp.exp(-log_variance) + log_variance + math.log(2 * math.pi)
    return -0.5 * jnp.sum(each, axis=-1)


def bernoulli_log_likelihood(
    x: Float[Array, "*batch size"], logits: Float[Array, "*other size"]
) -> Float[Array, "*out"]:
    """log p(x) in nats of independent pixels with p(1) = sigmoid(logits), summed over the last axis.

    Args:
      x: 0 or 1, or the probability of 1, in [0, 1].
      logits: of each pixel; broadcast against x.
    """
    return jnp.sum(x * logits - jax.nn.softplus(logits), axis=-1)


def importance_bound(log_weights: Float[Array, "draws *batch"]) -> Float[Array, "*batch"]:
    """log of the mean importance weight: a lower bound on log p(x) that rises with the number of samples.

    Burda et al. 2016, 1509.00519, equation 8. With one sample it is the evidence lower bound's estimate.

    Args:
      log_weights: log p(x, z) - log q(z | x) of each sample z.
    """
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))


def bernoulli_sparsity(activity: Float[Array, "batch units"], target: float) -> Float[Array, "units"]:
    """KL of Bernoulli(target) from Bernoulli(mean activity) of each unit over the batch, in nats.

    Ng 2011, "Sparse autoencoder" (CS294A lecture notes), section 3.

    Args:
      activity: in (0, 1).
      target: fraction of the time that a unit should be active, in (0, 1).

    Raises:
      UsageError: target outside (0, 1).
    """
    if not 0 < target < 1:
        raise UsageError(f"target is {target}; expected a fraction between 0 and 1, such as 0.05")
    share = jnp.mean(activity.astype(jnp.promote_types(activity.dtype, jnp.float32)), axis=0)
    tiny = jnp.finfo(share.dtype).tiny
    log = lambda p: jnp.log(jnp.maximum(p, tiny))
    return target * (math.log(target) - log(share)) + (1 - target) * (math.log1p(-target) - log(1 - share))


def largest_only(x: Float[Array, "*batch units"], count: int) -> Float[Array, "*batch units"]:
    """x with all but the `count` largest units of each example set to 0 (1312.5663, algorithm 1).

    Raises:
      UsageError: count is not from 1 to the number of units.
    """
    if not 1 <= count <= x.shape[-1]:
        raise UsageError(f"{count} units are to be kept of {x.shape[-1]}; expected 1 to {x.shape[-1]}")
    least = jax.lax.top_k(x, count)[0][..., -1:]
    return jnp.where(x >= least, x, 0)


def linear_interpolation(
    start: Float[Array, "*batch latent"], end: Float[Array, "*batch latent"], share: Float[Array, "steps"]
) -> Float[Array, "steps *batch latent"]:
    """(1 - t) start + t end for each t in `share`."""
    share = share.reshape(-1, *(1,) * start.ndim)
    return (1 - share) * start + share * end


def spherical_interpolation(
    start: Float[Array, "*batch latent"], end: Float[Array, "*batch latent"], share: Float[Array, "steps"]
) -> Float[Array, "steps *batch latent"]:
    """From start to end along the great circle between their directions (Shoemake 1985; White 2016, 1609.04468).

    sin((1 - t) w) / sin(w) start + sin(t w) / sin(w) end, with w the angle between them; where that is 0, linear.
    """
    share = share.reshape(-1, *(1,) * start.ndim)
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), jnp.finfo(x.dtype).tiny)
    angle = jnp.arccos(jnp.clip(jnp.sum(unit(start) * unit(end), axis=-1, keepdims=True), -1, 1))
    sine = jnp.sin(angle)
    safe = jnp.where(sine > 1e-6, sine, 1)
    along = (jnp.sin((1 - share) * angle) * start + jnp.sin(share * angle) * end) / safe
    return jnp.where(sine > 1e-6, along, (1 - share) * start + share * end)
