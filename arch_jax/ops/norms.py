"""Normalisation of the last axis, with the statistics in at least float32."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

__all__ = ["layer_norm", "layer_norm_reference", "rms_norm", "rms_norm_reference"]


def rms_norm(
    x: Float[Array, "*batch width"], scale: Float[Array, "width"], epsilon: float
) -> Float[Array, "*batch width"]:
    return rms_norm_reference(x, scale, epsilon)


def layer_norm(
    x: Float[Array, "*batch width"],
    scale: Float[Array, "width"],
    bias: Float[Array, "width"] | None,
    epsilon: float,
) -> Float[Array, "*batch width"]:
    return layer_norm_reference(x, scale, bias, epsilon)


def rms_norm_reference(x, scale, epsilon):
    precision = jnp.promote_types(x.dtype, jnp.float32)
    h = x.astype(precision)
    h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + epsilon)
    return (h * scale.astype(precision)).astype(x.dtype)


def layer_norm_reference(x, scale, bias, epsilon):
    precision = jnp.promote_types(x.dtype, jnp.float32)
    h = x.astype(precision)
    h = h - jnp.mean(h, axis=-1, keepdims=True)
    h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + epsilon) * scale.astype(precision)
    if bias is not None:
        h = h + bias.astype(precision)
    return h.astype(x.dtype)
