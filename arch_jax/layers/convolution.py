"""Convolution over pictures, and the pooling that follows it. Pictures are "batch height width channels"."""

from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType, Kind, component
from arch_jax.layers.feed_forward import activation
from arch_jax.ops.convolution import convolve
from arch_jax.ops.maximum import largest

Pool = Annotated[nn.Module, Kind("pool")]


class Convolution(nn.Module):
    """y = x * K + b: cross-correlation of every window with each kernel.

    Attributes:
      features: channels of the output.
      size: pixels of the (square) kernel on a side.
      stride: pixels between windows.
      padding: zeros on every side; None is as many as keep the size at stride 1.
      bias: whether b exists.
      initial: the draw of K, called with (key, shape, dtype); shape is "size size channels features".
      initial_bias: the draw of b.
      dtype: of the computation.
      parameter_dtype: of K and b.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int | None = None
    bias: bool = True
    initial: Callable = nn.initializers.he_normal()
    initial_bias: Callable = nn.initializers.zeros
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.initial, shape, self.parameter_dtype)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        if not self.bias:
            return y
        return y + self.param("bias", self.initial_bias, (self.features,), self.parameter_dtype).astype(self.dtype)


def windows_sum(x: Float[Array, "batch height width channels"], size: int) -> Float[Array, "batch h w channels"]:
    """The sum over windows of `size` x `size` that do not overlap; rows and columns left over are dropped."""
    return _windows(x, size).sum((2, 4))


def _windows(x: Array, size: int) -> Array:
    batch, height, width, channels = x.shape
    h, w = height // size, width // size
    return x[:, : h * size, : w * size].reshape(batch, h, size, w, size, channels)


@component("subsampling", kind="pool")
class Subsampling(nn.Module):
    """LeNet's trainable pooling: f(a_c * sum of the window + b_c) for each channel c (LeCun et al. 1998, section II.B).

    Attributes:
      size: pixels of a window on a side; windows do not overlap.
      activation: name of f.
      dtype: of the computation.
      parameter_dtype: of a and b.
    """

    size: int = 2
    activation: str = "scaled_tanh"
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w channels"]:
        def initial(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:  # 2.4 / fan-in, as every other weight
            limit = 2.4 / self.size**2
            return jax.random.uniform(key, shape, dtype, -limit, limit)

        scale = self.param("scale", initial, (x.shape[-1],), self.parameter_dtype).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.parameter_dtype).astype(self.dtype)
        return activation(self.activation)(windows_sum(x.astype(self.dtype), self.size) * scale + bias)


@component("average_pool", kind="pool")
class AveragePool(nn.Module):
    """The mean over windows that do not overlap.

    Attributes:
      size: pixels of a window on a side.
    """

    size: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w channels"]:
        return windows_sum(x, self.size) / self.size**2


@component("max_pool", kind="pool")
class MaxPool(nn.Module):
    """The maximum over windows that do not overlap.

    Attributes:
      size: pixels of a window on a side.
    """

    size: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w channels"]:
        windows = _windows(x, self.size)
        return largest([windows[:, :, i, :, j] for i in range(self.size) for j in range(self.size)])
