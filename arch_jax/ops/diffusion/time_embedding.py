"""The time of a diffusion as sines and cosines: the first layer of most denoisers."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch_jax.errors import UsageError

__all__ = ["fourier_features", "fourier_features_reference", "time_embedding", "time_embedding_reference"]


def time_embedding(
    time: Float[Array, "batch"],
    features: int,
    shift: float | int = 0.0,
    cosine_first: bool = False,
    period: float | int = 10_000.0,
) -> Float[Array, "batch features"]:
    """Sines sin(t w_i), then cosines cos(t w_i): w_i = period^(-i / (h - shift)), i = 0 ... h - 1, h = features / 2.

    DDPM (Ho et al. 2020, 2006.11239, appendix B and the authors' code) has a shift of 1, so that the lowest frequency
    is exactly 1 / period, and sines first; ADM, GLIDE and DiT have no shift and cosines first.

    Args:
      time: in the network's units, such as 0 to 999.
      features: numbers for each example; an odd one adds a 0 at the end.
      shift: of the divisor in the exponent, in frequencies.
      cosine_first: whether the cosines precede the sines.
      period: 2 pi times it is the longest period (without shift, about), in units of time.

    Returns:
      Numbers in [-1, 1], in time's dtype but at least float32.

    Raises:
      UsageError: fewer than 2 features, or no more frequencies than `shift`; a period of 0 or less.
    """
    half = features // 2
    if half < 1 or half <= shift:
        raise UsageError(
            f"the embedding of time has {features} features and a shift of {shift:g}; expected at least "
            f"{2 * max(1, math.floor(shift) + 1)} features"
        )
    if not period > 0:
        raise UsageError(f"the period of the embedding of time is {period}; expected a number above 0, such as 10000.0")
    time = time.astype(jnp.promote_types(time.dtype, jnp.float32))
    frequencies = float(period) ** (-np.arange(half) / (half - shift))
    angles = time[:, None] * jnp.asarray(frequencies, time.dtype)
    waves = [jnp.sin(angles), jnp.cos(angles)]
    y = jnp.concatenate(waves[::-1] if cosine_first else waves, axis=1)
    return jnp.pad(y, ((0, 0), (0, features % 2)))


def time_embedding_reference(time, features, shift=0.0, cosine_first=False, period=10_000.0):
    """`time_embedding`, one number after another in float64."""
    half = features // 2
    y = np.zeros((len(time), features))
    for row, i in np.ndindex(len(time), half):
        angle = float(time[row]) / period ** (i / (half - shift))
        sine, cosine = (half + i, i) if cosine_first else (i, half + i)
        y[row, sine], y[row, cosine] = math.sin(angle), math.cos(angle)
    return y


def fourier_features(
    time: Float[Array, "batch"], frequencies: Float[Array, "half"], cosine_first: bool = False
) -> Float[Array, "batch features"]:
    """Sines sin(2 pi t w_i), then cosines, of frequencies that are given (Tancik et al. 2020, 2006.10739, section 4).

    Args:
      time: in the network's units.
      frequencies: w, in periods per unit of time.
      cosine_first: whether the cosines precede the sines.

    Returns:
      Numbers in [-1, 1], in the wider dtype of the two but at least float32.
    """
    dtype = jnp.promote_types(jnp.promote_types(time.dtype, frequencies.dtype), jnp.float32)
    angles = 2 * math.pi * time.astype(dtype)[:, None] * frequencies.astype(dtype)
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves[::-1] if cosine_first else waves, axis=1)


def fourier_features_reference(time, frequencies, cosine_first=False):
    """`fourier_features`, one number after another in float64."""
    half = len(frequencies)
    y = np.zeros((len(time), 2 * half))
    for row, i in np.ndindex(len(time), half):
        angle = 2 * math.pi * float(time[row]) * float(frequencies[i])
        sine, cosine = (half + i, i) if cosine_first else (i, half + i)
        y[row, sine], y[row, cosine] = math.sin(angle), math.cos(angle)
    return y
