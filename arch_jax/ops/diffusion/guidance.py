"""Guidance: the network's answer for a condition, moved away from its answer without it.

The scale s is the factor of the difference: s = 1 is the conditional model, s = 0 the unconditional one. The w of Ho &
Salimans 2022 (2207.12598, equation 6) is s - 1.
"""

import jax
import jax.numpy as jnp

__all__ = ["guided", "rescaled"]


def guided(conditional: jax.Array, unconditional: jax.Array, scale: jax.Array | float) -> jax.Array:
    """unconditional + scale (conditional - unconditional) (2207.12598, equation 6).

    As weights add up to 1 it means the same for noise, v, x_0, score and flow.
    """
    return unconditional + scale * (conditional - unconditional)


def rescaled(combined: jax.Array, conditional: jax.Array, share: float) -> jax.Array:
    """Guided outputs with the standard deviation of the conditional ones, mixed in by `share`.

    Of each example on its own, over all its entries, unbiased as in the authors' code.

    Source: Lin et al. 2023 (2305.08891, equations 15 and 16), where the share is .7.
    """
    axes = tuple(range(1, combined.ndim))
    if combined[0].size < 2:  # one number has no standard deviation
        return combined
    std = lambda x: jnp.std(x, axis=axes, keepdims=True, ddof=1)
    spread = std(combined)
    ratio = jnp.where(spread > 0, std(conditional) / jnp.where(spread > 0, spread, 1), 1)
    return share * combined * ratio + (1 - share) * combined
