"""Guidance: the network's answer moved away from that without a condition, or towards the class of a classifier.

The scale s is the factor of the difference: s = 1 is the conditional model, s = 0 the unconditional one. The w of Ho &
Salimans 2022 (2207.12598, equation 6) is s - 1. A classifier's scale is the factor of its gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["class_gradient", "classifier_weights", "guided", "rescaled"]


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


def class_gradient(logits_of: Callable[[jax.Array], jax.Array], x: jax.Array, labels: jax.Array) -> jax.Array:
    """The gradient of log p(label | x) by x, of each example on its own (2105.05233, equations 4 and 5).

    Args:
      logits_of: a classifier, x -> "batch classes", which looks at each example alone.
      x: "batch ...".
      labels: "batch".
    """

    def log_probability(x: jax.Array) -> jax.Array:
        logits = logits_of(x)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).sum()

    return jax.grad(log_probability)(x)


def classifier_weights(alpha: np.ndarray, sigma: np.ndarray, scales: np.ndarray | float) -> np.ndarray:
    """The factor of the gradient of log p(label | x_t) in D: scale sigma^2 / alpha.

    A gradient g moves the score by s g, so eps by -s sigma g (2105.05233, equation 14) and D = (x - sigma eps) / alpha
    by s sigma^2 / alpha g. Where alpha is 0, x_t is noise alone, g is 0 and the factor infinite: such a call, the first
    of a flow or of a chain with zero terminal SNR, is not guided.

    Args:
      alpha, sigma: of each call, on the host in float64.
      scales: s of each call.
    """
    return np.where(alpha > 0, scales * sigma**2 / np.where(alpha > 0, alpha, 1.0), 0.0)
