"""The residual and attention blocks of diffusion's U-Nets and of latent diffusion's autoencoder.

Esser et al. 2021 (2012.09841, table 7): residual blocks with group norm and the swish activation, and attention between
two of them where the image is smallest; Rombach et al. 2022 (2112.10752, appendix G) take them over.

Convolutions and linear layers start as PyTorch's default, which the authors kept: kernels and biases uniform
in +-1 / sqrt(fan-in).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType
from arch_jax.layers.dense import Dense
from arch_jax.layers.norms import GroupNorm
from arch_jax.layers.vision.convolution import Convolution
from arch_jax.ops.attention.dot_product import attention

#: Added to the variances of group norm; the authors' number.
EPSILON = 1e-6


def upsampled(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch twice double channels"]:
    """Every pixel four times: twice the height and width."""
    batch, height, width, channels = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return wide.reshape(batch, 2 * height, 2 * width, channels)


def uniform_draw(fan_in: int) -> functools.partial:
    """Uniform on +-1 / sqrt(fan-in), called with (key, shape, dtype)."""
    return functools.partial(jax.random.uniform, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)


def convolution(features: int, size: int, channels: int, **settings: Any) -> Convolution:
    """A convolution of `channels` channels that starts as PyTorch's does."""
    draw = uniform_draw(channels * size**2)
    return Convolution(features, size, initial=draw, initial_bias=draw, **settings)


class ResidualBlock(nn.Module):
    """S(x) + K_2 * swish(norm(K_1 * swish(norm(x)))); S is a 1 x 1 convolution where the channels change, or nothing.

    Attributes:
      features: channels of the output.
      groups: of the group norms.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    features: int
    groups: int = 32
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width features"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        channels, y = x.shape[-1], x
        for number, before in ((1, channels), (2, self.features)):
            y = nn.silu(GroupNorm(self.groups, EPSILON, **dtypes, name=f"norm_{number}")(y))
            y = convolution(self.features, 3, before, **dtypes, name=f"convolution_{number}")(y)
        if channels != self.features:
            x = convolution(self.features, 1, channels, **dtypes, name="shortcut")(x)
        return x.astype(y.dtype) + y


class SpatialAttention(nn.Module):
    """x + W_o softmax(Q K^T / sqrt(channels)) V, single-head attention among all places of the image.

    Attributes:
      groups: of the group norm in front.
      dtype: of the computation; the softmax is at least float32.
      parameter_dtype: of the parameters.
    """

    groups: int = 32
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        batch, height, width, channels = x.shape
        draw = uniform_draw(channels)
        dense = functools.partial(Dense, channels, initial=draw, initial_bias=draw, **dtypes)
        y = GroupNorm(self.groups, EPSILON, **dtypes, name="norm")(x).reshape(batch, height * width, channels)
        q, k, v = (dense(name=name)(y)[:, :, None] for name in ("query", "key", "value"))
        y = dense(name="output")(attention(q, k, v)[:, :, 0])
        return x.astype(y.dtype) + y.reshape(x.shape)


class Middle(nn.Module):
    """Two residual blocks with attention between them, at the lowest resolution.

    Attributes:
      groups: of the group norms.
      attention: whether there is attention.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    groups: int = 32
    attention: bool = True
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        x = ResidualBlock(x.shape[-1], self.groups, **dtypes, name="unit_0")(x)
        if self.attention:
            x = SpatialAttention(self.groups, **dtypes, name="attention")(x)
        return ResidualBlock(x.shape[-1], self.groups, **dtypes, name="unit_1")(x)
