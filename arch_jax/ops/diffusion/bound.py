"""Terms of the variational bound of a chain, for a learned variance (improved DDPM)."""

import math

import jax
import jax.numpy as jnp

from arch_jax.ops.precision import at_least_float32

__all__ = ["bound_term", "discretised_gaussian_nll"]


def bound_term(
    clean: jax.Array, x: jax.Array, estimate: jax.Array, where: jax.Array, now: tuple, before: tuple, bin_width: float
) -> jax.Array:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) of each entry in bits, and at the first step -log2 p(x_0 | x_1).

    The variance of p is exp(v log beta + (1 - v) log beta~), v = (where + 1) / 2 (Nichol & Dhariwal 2021, 2102.09672,
    equation 15); where it alone is to be learned from this term, the caller stops the gradient of `estimate` (section
    3.1).

    Args:
      clean: x_0.
      x: x_t.
      estimate: D, from which the mean of p follows.
      where: output of the network for the variance, in [-1, 1] at the bounds.
      now: (alpha, sigma) at t, broadcastable to x.
      before: (alpha, sigma) at t - 1.
      bin_width: distance of two grey levels of the data, 2 / 255 of 8-bit images in [-1, 1].
    """
    (alpha, sigma), (alpha_before, sigma_before) = now, before
    # Of the step from t - 1 to t: x_t = a x_{t-1} + sqrt(beta) noise.
    a = alpha / alpha_before
    beta = sigma**2 - a**2 * sigma_before**2
    first = sigma_before == 0
    posterior = jnp.where(first, beta, beta * sigma_before**2 / sigma**2)
    mean = lambda d: (alpha_before * beta * d + a * sigma_before**2 * x) / sigma**2
    part = (where + 1) / 2
    log_variance = part * jnp.log(beta) + (1 - part) * jnp.log(posterior)
    away = jnp.square(mean(clean) - mean(estimate))
    nats = 0.5 * (log_variance - jnp.log(posterior) - 1 + (posterior + away) * jnp.exp(-log_variance))
    decoder = discretised_gaussian_nll(clean, mean(estimate), 0.5 * log_variance, bin_width)
    return jnp.where(first, decoder, nats) / math.log(2)


def discretised_gaussian_nll(x: jax.Array, mean: jax.Array, log_std: jax.Array, width: float) -> jax.Array:
    """-log of a normal law's probability of the grey level around x, whose outermost levels reach to infinity.

    Source: Ho et al. 2020 (2006.11239, equation 13), for data in [-1, 1].
    """
    x, mean, log_std = at_least_float32((x, mean, log_std))
    below, above = ((x - mean + side * width / 2) * jnp.exp(-log_std) for side in (-1, 1))
    low = jnp.where(x < -0.999, 0.0, jax.scipy.special.ndtr(below))
    high = jnp.where(x > 0.999, 1.0, jax.scipy.special.ndtr(above))
    return -jnp.log(jnp.maximum(high - low, 1e-12))
