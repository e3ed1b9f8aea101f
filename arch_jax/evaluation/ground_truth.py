"""Measures against how the data was made: the score of a mixture, the atoms of a dictionary."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.ops.gaussian_mixture import mixture_score
from arch_jax.ops.losses import Pair

#: A row counts as an atom where 1 - |cosine| is below this (Aharon et al. 2006, "K-SVD", section V.A).
NEAR = 0.01


def score_error(
    step: Float[Array, "batch size"],
    noisy: Float[Array, "batch size"],
    noise: float,
    centres: Float[Array, "modes size"],
    std: Float[Array, ""],
) -> Pair:
    """The mean of |s - score|^2 over the mean of |score|^2, s = step / noise^2: 0 at the best, 1 for s = 0.

    Args:
      step: r(x) - x of a denoising autoencoder (Alain & Bengio 2014, 1211.4246, theorem 1).
      noisy: x, points of the mixture with noise.
      noise: standard deviation of the noise.
      centres, std: of the mixture without noise.
    """
    truth = mixture_score(noisy, centres, jnp.sqrt(jnp.square(std) + noise**2))
    return jnp.sum(jnp.square(step / noise**2 - truth)), jnp.sum(jnp.square(truth))


def recovered(found: Float[Array, "rows size"], atoms: Float[Array, "atoms size"]) -> dict[str, Pair]:
    """The share of the atoms that a row is as good as equal to ("recovered"), and the nearest row's cosine ("cosine").

    Args:
      found: rows of length 1.
      atoms: of length 1.
    """
    best = jnp.max(jnp.abs(atoms @ found.T), axis=1)
    count = jnp.asarray(len(atoms), best.dtype)
    return {"recovered": (jnp.sum((best > 1 - NEAR).astype(best.dtype)), count), "cosine": (jnp.sum(best), count)}
