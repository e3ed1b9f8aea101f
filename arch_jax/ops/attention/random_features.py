"""Random features whose products estimate exp(q . k): Performer's FAVOR+ (Choromanski et al. 2020, 2009.14794)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch_jax.errors import UsageError

__all__ = ["orthogonal_projection", "positive_features"]

#: Exponents of the keys are clipped here, so that sums over a sequence do not overflow float32 (limit exp(88)).
LARGEST_EXPONENT = 60.0


@functools.lru_cache(maxsize=128)
def orthogonal_projection(features: int, dim: int, seed: int = 0, orthogonal: bool = True) -> np.ndarray:
    """Random directions "features dim": each row has the distribution of a normal vector, and rows are orthogonal.

    Orthogonal within blocks of `dim` rows (there are no more in `dim` dimensions); blocks are independent. The lengths
    are those of independent normal vectors, so that estimates stay unbiased and only lose variance.

    Args:
      features: rows, the paper's m.
      dim: of a head.
      seed: of the draw, by numpy.
      orthogonal: whether rows are made orthogonal; otherwise all are independent.

    Returns:
      float64, read-only.

    Raises:
      UsageError: `features` or `dim` below 1.

    Source: arXiv 2009.14794, section 2.4.
    """
    for name, value in (("features", features), ("dim", dim)):
        if value < 1:
            raise UsageError(f"{name} of the random projection is {value}; expected an integer of at least 1")
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(-(-features // dim) * dim, dim))
    if orthogonal:
        lengths = np.linalg.norm(draw.normal(size=rows.shape), axis=1, keepdims=True)
        blocks = []
        for block in rows.reshape(-1, dim, dim):
            q, r = np.linalg.qr(block)
            blocks.append((q * np.sign(np.diagonal(r))).T)  # the signs make it uniform among the rotations
        rows = np.concatenate(blocks) * lengths
    rows = rows[:features].copy()
    rows.setflags(write=False)
    return rows


def positive_features(
    x: Float[Array, "*batch dim"], projection: np.ndarray | Float[Array, "features dim"], query: bool = False
) -> Float[Array, "*batch features"]:
    """phi(x) = exp(w x - |x|^2 / 2) / sqrt(m) for each row w of the projection, up to a factor.

    The expectation of phi(q) . phi(k) is exp(q . k), up to that factor, which attention divides out again: a query's
    features are divided by the largest of them. Exponents of the keys are clipped at 60: sums do not overflow. Scores
    q . k / sqrt(dim) come of x divided by dim^(1/4).

    Args:
      x: queries or keys.
      projection: rows drawn from the standard normal distribution, as by `orthogonal_projection`.
      query: whether x are queries, and each may have a factor of its own.

    Returns:
      Features in at least float32, none negative.

    Source: arXiv 2009.14794, lemma 1 and equation 5 (the form SM+).
    """
    precise = jnp.promote_types(x.dtype, jnp.float32)
    projection = jnp.asarray(projection, precise)
    x = x.astype(precise)
    exponent = jnp.einsum("...d,md->...m", x, projection) - jnp.sum(x**2, axis=-1, keepdims=True) / 2
    if query:
        exponent = exponent - jax.lax.stop_gradient(jnp.max(exponent, axis=-1, keepdims=True))
    else:
        # Subtracting a maximum over the keys would leak the future into the past. Clipping affects only a key that lies
        # nearly along a direction and is nearly as long: the exponent is |w|^2 / 2 - |w - x|^2 / 2.
        exponent = jnp.minimum(exponent, LARGEST_EXPONENT)
    return jnp.exp(exponent) / projection.shape[0] ** 0.5
