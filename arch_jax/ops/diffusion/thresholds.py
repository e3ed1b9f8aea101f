"""Thresholds of the denoised estimate, for data of a known range."""

import jax
import jax.numpy as jnp

__all__ = ["dynamic_threshold", "static_threshold"]


def static_threshold(clean: jax.Array, most: float = 1.0) -> jax.Array:
    """D clipped to [-most, most] (Ho et al. 2020, 2006.11239, whose code clips at every step)."""
    return jnp.clip(clean, -most, most)


def dynamic_threshold(clean: jax.Array, share: float = 0.995, most: float = 1.0) -> jax.Array:
    """D clipped to the quantile s of its absolute values, and divided by it where it exceeds `most`.

    s is of each example on its own, at least `most`; the result lies in [-most, most].

    Source: Saharia et al. 2022 (Imagen, 2205.11487, section 2.3).
    """
    flat = jnp.abs(clean.reshape(len(clean), -1))
    s = jnp.maximum(jnp.quantile(flat, share, axis=1), most).reshape(-1, *(1,) * (clean.ndim - 1))
    return jnp.clip(clean, -s, s) / s * most
