"""Vector quantisation: the nearest code, its straight-through gradient, and codebooks by moving averages."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

__all__ = ["moved_codes", "nearest_code", "nearest_code_reference", "perplexity", "revived", "straight_through"]


def nearest_code(x: Float[Array, "*batch width"], codes: Float[Array, "codes width"]) -> Int[Array, "*batch"]:
    """The number of the code nearest to each vector (van den Oord et al. 2017, 1711.00937, equation 1).

    argmin |e|^2 - 2 x.e, which omits |x|^2: a matrix product instead of all differences.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, codes = x.astype(wide), codes.astype(wide)
    return jnp.argmin(jnp.sum(jnp.square(codes), axis=-1) - 2 * x @ codes.T, axis=-1).astype(jnp.int32)


def nearest_code_reference(x, codes):
    """`nearest_code` from all differences."""
    return jnp.argmin(jnp.sum(jnp.square(x[..., None, :] - codes), axis=-1), axis=-1).astype(jnp.int32)


def straight_through(x: Float[Array, "*shape"], replaced: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`replaced` in the forward pass, whose gradient goes to x as it is (1711.00937, section 3.2)."""
    return x + jax.lax.stop_gradient(replaced - x)


def moved_codes(
    x: Float[Array, "batch width"],
    chosen: Int[Array, "batch"],
    counts: Float[Array, "codes"],
    sums: Float[Array, "codes width"],
    decay: float,
    epsilon: float = 1e-5,
) -> tuple[Float[Array, "codes width"], Float[Array, "codes"], Float[Array, "codes width"]]:
    """A codebook after it has moved towards the vectors that chose each code (1711.00937, appendix A.1).

        N <- decay N + (1 - decay) n,   m <- decay m + (1 - decay) sum of the n vectors,   e = m / N

    With decay 0 and epsilon 0 it is one step of k-means. N is smoothed by epsilon, so that it is never 0.

    Args:
      x: vectors.
      chosen: the code of each.
      counts, sums: N and m so far.
      decay: fraction of the old average that is kept, in [0, 1).
      epsilon: added to each count, at the cost of all.

    Returns:
      The codes, and N and m as they now are.
    """
    member = jax.nn.one_hot(chosen, len(counts), dtype=sums.dtype)
    counts = decay * counts + (1 - decay) * member.sum(0)
    sums = decay * sums + (1 - decay) * member.T @ x.astype(sums.dtype)
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + len(counts) * epsilon) * total
    return sums / smoothed[:, None], counts, sums


def revived(
    key: PRNGKeyArray,
    x: Float[Array, "batch width"],
    codes: Float[Array, "codes width"],
    counts: Float[Array, "codes"],
    sums: Float[Array, "codes width"],
    least: float,
) -> tuple[Float[Array, "codes width"], Float[Array, "codes"], Float[Array, "codes width"]]:
    """Codes that hardly any vector chooses, moved to a random vector of the batch (Dhariwal et al. 2020,
    2005.00341, section 3.1; 1711.00937 has no such thing).

    Args:
      key: draws the vectors.
      x: vectors.
      codes, counts, sums: the codebook, as `moved_codes` returns it.
      least: a code whose count is below that is moved, with a count of 1; 0 disables it.
    """
    dead = counts < least
    drawn = x[jax.random.randint(key, (len(codes),), 0, len(x))].astype(codes.dtype)
    codes = jnp.where(dead[:, None], drawn, codes)
    return codes, jnp.where(dead, 1, counts), jnp.where(dead[:, None], drawn, sums)


def perplexity(chosen: Int[Array, "*batch"], codes: int) -> Float[Array, ""]:
    """exp of the entropy of how often each code is chosen: 1 if it is always the same, `codes` if all are alike."""
    share = jnp.bincount(chosen.ravel(), length=codes) / chosen.size
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0)))
