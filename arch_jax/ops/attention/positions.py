"""Position encodings without parameters: rotary (RoPE), sinusoidal in one and two dimensions, ALiBi's slopes, T5's
relative buckets."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError

__all__ = [
    "alibi_slopes",
    "apply_rope",
    "apply_rope_reference",
    "relative_buckets",
    "relative_buckets_reference",
    "rope_frequencies",
    "sinusoidal",
    "sinusoidal_grid",
    "sinusoidal_grid_reference",
]


def rope_frequencies(dim: int, theta: float | int = 10_000.0, scaling: Callable | None = None) -> Float[Array, "half"]:
    """RoPE's angular frequencies theta^(-2i/dim), i = 0 ... dim/2 - 1 (RoFormer, arXiv 2104.09864, section 3.2.2).

    Args:
      dim: the number of dimensions of a head that rotate; even.
      theta: the base; 10,000 in the paper, 500,000 in Llama 3.
      scaling: a rule of `rope_scaling` that stretches the frequencies to longer contexts; None disables it.

    Returns:
      `dim // 2` frequencies in radians a token, descending from 1; float32 (float64 where jax's x64 mode is on).

    Raises:
      UsageError: `dim` is odd or below 2, or `theta` is not positive.
    """
    if dim < 2 or dim % 2:
        raise UsageError(
            f"RoPE's dim is {dim}; expected an even number of at least 2 (the nearest is {max(2, dim + dim % 2)})"
        )
    if not theta > 0:
        raise UsageError(f"RoPE's theta is {theta}; expected a number above 0, such as 10000.0")
    # In float: an integer theta to a negative power would overflow or be refused.
    frequencies = float(theta) ** (-jnp.arange(0, dim, 2, dtype=float) / dim)
    return frequencies if scaling is None else scaling(frequencies, theta)


def _angles(positions, frequencies, dtype):
    """Angles "batch time 1 half" (batch 1 where the positions have none) in at least float32."""
    if positions.ndim == 1:
        positions = positions[None]
    precision = jnp.promote_types(dtype, jnp.float32)
    return positions[:, :, None, None].astype(precision) * frequencies.astype(precision)


def apply_rope(
    x: Float[Array, "batch time heads dim"],
    positions: Int[Array, "batch time"] | Int[Array, "time"],
    frequencies: Float[Array, "half"],
    factor: float | int = 1.0,
) -> Float[Array, "batch time heads dim"]:
    """Rotates queries or keys by their positions, so that their dot products depend on differences of positions only.

    Dimension i is paired with dimension i + half ("half-split", "rotate_half": the convention of GPT-NeoX, Llama and
    Hugging Face; the paper's interleaved pairs are a permutation of it). The first `2 * half` dimensions rotate, the
    rest pass unchanged (partial rotary).

    Args:
      x: queries or keys.
      positions: each token's position, in tokens; any integers.
      frequencies: radians a token, as `rope_frequencies` gives them.
      factor: multiplies the rotated dimensions; 1 except for YaRN.

    Returns:
      The rotated `x`, in its dtype; angles and rotation are computed in at least float32.

    Raises:
      UsageError: there are more frequencies than pairs of dimensions.

    Source: RoFormer (arXiv 2104.09864), equation 34.
    """
    half = _half(x, frequencies)
    angles = _angles(positions, frequencies, x.dtype)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if factor != 1:
        cos, sin = cos * factor, sin * factor
    first, second = x[..., :half].astype(angles.dtype), x[..., half : 2 * half].astype(angles.dtype)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*(part.astype(x.dtype) for part in rotated), x[..., 2 * half :]], axis=-1)


def apply_rope_reference(x, positions, frequencies, factor=1.0):
    """`apply_rope` as it is defined: each pair of dimensions is a complex number, multiplied by e^(i m theta)."""
    half = _half(x, frequencies)
    angles = _angles(positions, frequencies, x.dtype)
    pairs = (x[..., :half] + 1j * x[..., half : 2 * half]) * factor * jnp.exp(1j * angles)
    return jnp.concatenate([pairs.real.astype(x.dtype), pairs.imag.astype(x.dtype), x[..., 2 * half :]], axis=-1)


def _half(x, frequencies):
    half, dim = frequencies.shape[0], x.shape[-1]
    if 2 * half > dim:
        raise UsageError(
            f"{half} frequencies rotate {2 * half} dimensions, but the heads have {dim}; "
            f"expected at most {dim // 2} frequencies, as rope_frequencies({dim - dim % 2}) gives"
        )
    return half


def sinusoidal(length: int, width: int) -> Float[Array, "length width"]:
    """The fixed position encodings of Attention Is All You Need (arXiv 1706.03762, section 3.5).

    PE(pos, 2i) = sin(pos / 10000^(2i/width)), PE(pos, 2i + 1) = cos(the same); values lie in [-1, 1].

    Args:
      length: the number of positions, counted from 0.
      width: the model's width, even.

    Raises:
      UsageError: `length` is negative, or `width` odd or below 2.
    """
    if length < 0:
        raise UsageError(f"length is {length}; expected a number of positions of at least 0")
    if width < 2 or width % 2:
        raise UsageError(
            f"width is {width}; expected an even number of at least 2 (the nearest is {max(2, width + width % 2)})"
        )
    angles = jnp.arange(length, dtype=float)[:, None] * rope_frequencies(width)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, width)


def sinusoidal_grid(height: int, width: int, features: int) -> Float[Array, "places features"]:
    """Fixed position encodings of a grid's places, row by row: half of each says the column, half the row.

    A coordinate p becomes [sin(p w_0) ... sin(p w_k-1), cos(p w_0) ... cos(p w_k-1)] with w_i = 10000^(-i/k) and
    k = features / 4. The column comes first, as in the authors' code of MAE, whose checkpoints depend on it.

    Args:
      height: rows of the grid.
      width: columns of the grid.
      features: numbers for each place, a multiple of 4.

    Returns:
      Numbers in [-1, 1], computed in float64 and given in JAX's default float type.

    Raises:
      UsageError: a side is below 1, or `features` is no multiple of 4.

    Source: He et al. 2021 (2111.06377), appendix A.1; Chen et al. 2021, MoCo v3 (2104.02057), section 6.3.
    """
    if height < 1 or width < 1:
        raise UsageError(f"the grid is {height} x {width}; expected at least 1 x 1 places")
    if features < 4 or features % 4:
        raise UsageError(
            f"sine-cosine positions of a grid have {features} features; expected a multiple of 4, such as "
            f"{max(4, round(features / 4) * 4)}"
        )
    quarter = features // 4
    frequencies = 10_000.0 ** -(np.arange(quarter) / quarter)
    waves = lambda p: np.concatenate([np.sin(p[:, None] * frequencies), np.cos(p[:, None] * frequencies)], axis=1)
    columns, rows = waves(np.arange(float(width))), waves(np.arange(float(height)))
    table = np.concatenate([np.tile(columns, (height, 1)), np.repeat(rows, width, axis=0)], axis=1)
    return jnp.asarray(table, dtype=float)


def sinusoidal_grid_reference(height, width, features):
    """`sinusoidal_grid`, one number after another."""
    k = features // 4
    table = np.empty((height, width, features))
    for row, column, i in np.ndindex(height, width, k):
        for start, p in ((0, column), (2 * k, row)):
            angle = p / 10_000 ** (i / k)
            table[row, column, start + i], table[row, column, start + k + i] = math.sin(angle), math.cos(angle)
    return table.reshape(height * width, features)


def alibi_slopes(heads: int) -> Float[Array, "heads"]:
    """ALiBi's slopes, one a head: the geometric sequence that starts at 2^(-8/n) with that same ratio.

    For a number of heads that is no power of 2, n is the next lower power, and the remaining heads take every second
    term of the sequence for 2n (as the authors' code does).

    Args:
      heads: at least 1.

    Returns:
      Slopes in (0, 1), so that head h adds -slope[h] * |i - j| to its scores.

    Raises:
      UsageError: `heads` is below 1.

    Source: Press et al. 2021, Train Short, Test Long (arXiv 2108.12409), section 3.
    """
    if heads < 1:
        raise UsageError(f"heads is {heads}; expected at least 1")
    n = 2 ** int(math.log2(heads))
    sequence = lambda n: [2.0 ** (-8 * (i + 1) / n) for i in range(n)]
    return jnp.asarray(sequence(n) + sequence(2 * n)[0::2][: heads - n], dtype=float)


def relative_buckets(
    distance: Int[Array, "*shape"], buckets: int = 32, longest: int = 128, bidirectional: bool = True
) -> Int[Array, "*shape"]:
    """T5's buckets of relative positions: one for each small distance, then logarithmically wider ones.

    Args:
      distance: position of the query less that of the key, in tokens.
      buckets: their number; if bidirectional, shared equally among keys before (or at) the query and after.
      longest: distances from here on share the last bucket.
      bidirectional: whether keys after the query have buckets of their own; else they fall into that of distance 0.

    Returns:
      Indices in [0, buckets), int32.

    Raises:
      UsageError: too few buckets (4, or 2 where they are not bidirectional, is the least), or `longest` within the
        distances that have a bucket each.

    Source: Raffel et al. 2020, T5 (arXiv 1910.10683), section 2.1, and its code.
    """
    side = buckets // 2 if bidirectional else buckets
    exact = side // 2
    if exact < 1:
        raise UsageError(f"buckets is {buckets}; expected at least {4 if bidirectional else 2}")
    if longest <= exact:
        raise UsageError(f"longest is {longest}, but distances up to {exact} have buckets each; expected more")
    after = jnp.where(distance < 0, side, 0) if bidirectional else 0
    far = jnp.abs(distance) if bidirectional else jnp.maximum(distance, 0)
    # In float32 whatever the platform's default: the borders of the buckets are where its rounding puts them.
    logarithm = jnp.log(jnp.maximum(far, exact).astype(jnp.float32) / exact)
    wide = exact + (logarithm / jnp.float32(math.log(longest / exact)) * (side - exact)).astype(jnp.int32)
    return (after + jnp.where(far < exact, far, jnp.minimum(wide, side - 1))).astype(jnp.int32)


def relative_buckets_reference(distance, buckets=32, longest=128, bidirectional=True):
    """`relative_buckets` of one distance, in exact arithmetic: the widest bucket whose border it has reached."""
    side = buckets // 2 if bidirectional else buckets
    exact, far = side // 2, abs(distance) if bidirectional else max(distance, 0)
    start = side if bidirectional and distance < 0 else 0
    if far < exact:
        return start + far
    # Bucket exact + n begins where (far / exact)^(side - exact) = (longest / exact)^n, compared as whole numbers.
    width = side - exact
    reached = [n for n in range(width) if far**width * exact**n >= longest**n * exact**width]
    return start + exact + max(reached)
