"""Modes of a mixture that generated points cover."""

import jax
import jax.numpy as jnp

from arch_jax.ops.losses import Pair


def modes(points: jax.Array, centres: jax.Array, std: jax.Array, deviations: float = 3.0) -> tuple[jax.Array, Pair]:
    """Which modes of a mixture have a point within 3 standard deviations, and the share of points that are so near.

    Args:
      points: "points features".
      centres: of the mixture's components, "modes features".
      std: of each component.
      deviations: how many standard deviations count as near.

    Returns:
      (booleans "modes", (points near any centre, points)).
    """
    distance = jnp.linalg.norm(points[:, None] - centres[None], axis=-1)
    near = distance <= deviations * std
    return near.any(0), (jnp.sum(near.any(1).astype(points.dtype)), jnp.asarray(len(points), points.dtype))
