"""2-D convolution and pooling layers. Images are "batch height width channels"."""

from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType, Kind, component
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.ops.convolution.dense import Padding, convolve, convolve_transposed
from arch_jax.ops.convolution.pooling import average_pool, max_pool
from arch_jax.ops.maximum import largest
from arch_jax.ranges import Count

Pool = Annotated[nn.Module, Kind("pool")]


class Convolution(nn.Module):
    """y = x * K + b: cross-correlation of every window with each kernel.

    Attributes:
      features: channels of the output.
      size: pixels of the (square) kernel on a side.
      stride: pixels between windows.
      padding: zeros on every side; (before, after); "same", TensorFlow's; None is as many as keep the size at stride 1.
      bias: whether b exists.
      initial: initializer of K, called with (key, shape, dtype); shape is "size size channels/groups features".
      initial_bias: initializer of b.
      dtype: of the computation.
      parameter_dtype: of K and b.
      groups: equal parts of the channels, each seen by its part of the features only; None is one for each channel
        (depthwise).
      dilation: pixels from one place of the kernel to the next.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: Padding = None
    bias: bool = True
    initial: Callable = nn.initializers.he_normal()
    initial_bias: Callable = nn.initializers.zeros
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    groups: int | None = 1
    dilation: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        groups = x.shape[-1] if self.groups is None else self.groups
        # Rounded down where groups don't divide the channels, which `convolve` refuses with a sentence.
        shape = (self.size, self.size, x.shape[-1] // max(groups, 1), self.features)
        kernel = self.param("kernel", self.initial, shape, self.parameter_dtype).astype(self.dtype)
        y = convolve(x.astype(self.dtype), kernel, self.stride, self.padding, groups=groups, dilation=self.dilation)
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


class TransposedConvolution(nn.Module):
    """The transpose of a convolution, plus a bias: images become `stride` times as large.

    Attributes:
      features: channels of the output.
      size: pixels of the (square) kernel on a side.
      stride: pixels of the output between two of the input.
      padding: pixels cut off on every side; 1 with size 4 and stride 2 gives exactly twice as many.
      bias: whether there is one.
      initial: initializer of the kernel, called with (key, shape, dtype); shape is "size size channels features".
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    features: int
    size: int = 4
    stride: int = 2
    padding: int = 1
    bias: bool = True
    initial: Callable = nn.initializers.he_normal()
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.initial, shape, self.parameter_dtype).astype(self.dtype)
        y = convolve_transposed(x.astype(self.dtype), kernel, self.stride, self.padding)
        if not self.bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,), self.parameter_dtype).astype(self.dtype)


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
    """The mean over windows.

    Attributes:
      size: pixels of a window on a side.
      stride: pixels between windows; None is `size`, so that they do not overlap.
      padding: zeros on every side, which count in the mean.
    """

    size: int = 2
    stride: int | None = None
    padding: Count = 0

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w channels"]:
        if self.stride in (None, self.size) and not self.padding:
            return windows_sum(x, self.size) / self.size**2
        return average_pool(x, self.size, self.stride or self.size, self.padding)


@component("max_pool", kind="pool")
class MaxPool(nn.Module):
    """The maximum over windows.

    Attributes:
      size: pixels of a window on a side.
      stride: pixels between windows; None is `size`, so that they do not overlap.
      padding: pixels on every side that are never the maximum.
      ceil: whether a last window that extends past the end counts.
    """

    size: int = 2
    stride: int | None = None
    padding: Count = 0
    ceil: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w channels"]:
        if self.stride in (None, self.size) and not self.padding and not self.ceil:
            windows = _windows(x, self.size)
            return largest([windows[:, :, i, :, j] for i in range(self.size) for j in range(self.size)])
        return max_pool(x, self.size, self.stride or self.size, self.padding, self.ceil)
