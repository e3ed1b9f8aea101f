"""Position encodings without parameters: rotary (RoPE, with linear and Llama 3.1's frequency scaling), sinusoidal."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError

__all__ = [
    "LinearScaling",
    "Llama3Scaling",
    "apply_rope",
    "apply_rope_reference",
    "rope_frequencies",
    "sinusoidal",
]


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: all wavelengths times `factor`, as if positions were divided by it.

    Source: Chen et al. 2023, Extending Context Window of Large Language Models via Positional Interpolation
    (arXiv 2306.15595), equation 4.

    Attributes:
      factor: how many times longer the context becomes; above 0.

    Raises:
      UsageError: the factor is not above 0.
    """

    factor: float = 2.0

    def __post_init__(self):
        if not self.factor > 0:
            raise UsageError(f"the factor of LinearScaling is {self.factor}; expected a number above 0, such as 2.0")

    def __call__(self, frequencies: Float[Array, "half"]) -> Float[Array, "half"]:
        """The stretched frequencies, in radians a token."""
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of RoPE to longer contexts (The Llama 3 Herd of Models, arXiv 2407.21783, and its code).

    Wavelengths (in tokens) shorter than `original_length / high_frequency_factor` are kept, those longer than
    `original_length / low_frequency_factor` are multiplied by `factor`, and between the two the frequency is
    interpolated linearly in `original_length / wavelength`.
    """

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        if not self.factor > 0:
            raise UsageError(f"the factor of Llama3Scaling is {self.factor}; expected a number above 0, such as 8.0")
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise UsageError(
                f"Llama3Scaling's frequency factors are {self.low_frequency_factor} (low) and "
                f"{self.high_frequency_factor} (high); expected 0 < low < high, such as 1.0 and 4.0"
            )
        if not self.original_length > 0:
            raise UsageError(
                f"the original_length of Llama3Scaling is {self.original_length}; expected a number of tokens above 0, "
                "such as 8192"
            )

    def __call__(self, frequencies: Float[Array, "half"]) -> Float[Array, "half"]:
        """The stretched frequencies, in radians a token."""
        cycles = self.original_length * frequencies / (2 * math.pi)  # turns within the original context
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = jnp.clip((cycles - low) / (high - low), 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor)


def rope_frequencies(
    dim: int, theta: float | int = 10_000.0, scaling: LinearScaling | Llama3Scaling | None = None
) -> Float[Array, "half"]:
    """RoPE's angular frequencies theta^(-2i/dim), i = 0 ... dim/2 - 1 (RoFormer, arXiv 2104.09864, section 3.2.2).

    Args:
      dim: how many dimensions of a head rotate; even.
      theta: the base; 10,000 in the paper, 500,000 in Llama 3.
      scaling: a stretching of the frequencies to longer contexts; None for none.

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
    return frequencies if scaling is None else scaling(frequencies)


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
) -> Float[Array, "batch time heads dim"]:
    """Rotates queries or keys by their positions, so that their dot products depend on differences of positions only.

    Dimension i is paired with dimension i + half ("half-split", "rotate_half": the convention of GPT-NeoX, Llama and
    Hugging Face; the paper's interleaved pairs are a permutation of it). The first `2 * half` dimensions rotate, the
    rest pass unchanged (partial rotary).

    Args:
      x: queries or keys.
      positions: each token's position, in tokens; any integers.
      frequencies: radians a token, as `rope_frequencies` gives them.

    Returns:
      The rotated `x`, in its dtype; angles and rotation are computed in at least float32.

    Raises:
      UsageError: there are more frequencies than pairs of dimensions.

    Source: RoFormer (arXiv 2104.09864), equation 34.
    """
    half = _half(x, frequencies)
    angles = _angles(positions, frequencies, x.dtype)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half].astype(angles.dtype), x[..., half : 2 * half].astype(angles.dtype)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*(part.astype(x.dtype) for part in rotated), x[..., 2 * half :]], axis=-1)


def apply_rope_reference(x, positions, frequencies):
    """`apply_rope` as it is defined: each pair of dimensions is a complex number, multiplied by e^(i m theta)."""
    half = _half(x, frequencies)
    angles = _angles(positions, frequencies, x.dtype)
    pairs = (x[..., :half] + 1j * x[..., half : 2 * half]) * jnp.exp(1j * angles)
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
      length: how many positions, counted from 0.
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
