"""Distances between two sets of samples, as estimates of those between their laws."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["mmd", "mmd_reference", "sliced_wasserstein"]


def mmd(
    x: Float[Array, "n features"], y: Float[Array, "m features"], widths: Float[Array, "kernels"]
) -> Float[Array, ""]:
    """The unbiased estimate of the squared maximum mean discrepancy, with a mean of Gaussian kernels.

    k(a, b) = mean over widths w of exp(-|a - b|^2 / (2 w^2)); sums leave out pairs of a point with itself. It may be
    negative.

    Source: Gretton et al. 2012, "A Kernel Two-Sample Test", equation 3.

    Args:
      x, y: samples.
      widths: of the kernels, in units of the coordinates.
    """

    def mean(a: Array, b: Array, itself: bool) -> Array:
        square = jnp.sum(jnp.square(a[:, None] - b[None]), axis=-1)
        k = sum(jnp.exp(-square / (2 * w**2)) for w in widths) / len(widths)
        # k of a point with itself is 1.
        return (k.sum() - len(a)) / (len(a) * (len(a) - 1)) if itself else k.mean()

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def mmd_reference(x, y, widths):
    """`mmd` as a sum over pairs, one after another."""
    k = lambda a, b: sum(float(jnp.exp(-jnp.sum((a - b) ** 2) / (2 * w**2))) for w in widths) / len(widths)
    pairs = lambda a: sum(k(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j)
    cross = sum(k(p, q) for p in x for q in y)
    return pairs(x) / (len(x) * (len(x) - 1)) + pairs(y) / (len(y) * (len(y) - 1)) - 2 * cross / (len(x) * len(y))


def sliced_wasserstein(
    x: Float[Array, "n features"], y: Float[Array, "n features"], key: jax.Array, directions: int = 128
) -> Float[Array, ""]:
    """The mean over random directions of the Wasserstein-1 distance of the projections.

    Source: Rabin et al. 2011, "Wasserstein Barycenter and its Application to Texture Mixing"; Bonneel et al. 2015.

    Args:
      x, y: as many samples of each.
      key: of the directions.
      directions: unit vectors, uniform on the sphere.
    """
    along = jax.random.normal(key, (x.shape[-1], directions), x.dtype)
    along = along / jnp.linalg.norm(along, axis=0)
    return jnp.mean(jnp.abs(jnp.sort(x @ along, axis=0) - jnp.sort(y @ along, axis=0)))
