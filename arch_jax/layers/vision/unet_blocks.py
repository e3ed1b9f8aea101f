"""The residual and attention blocks of diffusion's U-Nets and of latent diffusion's autoencoder.

Esser et al. 2021 (2012.09841, table 7): residual blocks with group norm and the swish activation, and attention between
two of them where the image is smallest; Rombach et al. 2022 (2112.10752, appendix G) take them over. In a denoiser
(Ho et al. 2020, 2006.11239, appendix B) the embedding of time is added between a block's two convolutions.

The autoencoders start as PyTorch's default, which their authors kept ("fan_in"): kernels and biases uniform in
+-1 / sqrt(fan-in). DDPM's start by its authors' code ("fan_avg"): kernels uniform with variance 1 / fan, where fan is
the mean of fan-in and fan-out; 1e-10 of that variance for the last layer of each block and of the network; biases 0.
Improved diffusion's (2102.09672) start as PyTorch's default, but the last layers at 0 ("fan_in_zeros").

A block may halve or double the image between its first norm and convolution, and beside them on its way past (BigGAN's:
Brock et al. 2019, 1809.11096). In the networks of score-based models (Song et al. 2021, 2011.13456, appendix H) sums
are divided by sqrt(2) and groups go by the number of channels; in those of guided diffusion (Dhariwal & Nichol 2021,
2105.05233, sections 3 and 3.1) the embedding may scale and shift the second norm rather than be added.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType
from arch_jax.layers.dense import Dense
from arch_jax.layers.norms import GroupNorm
from arch_jax.layers.vision.convolution import Convolution, windows_sum
from arch_jax.ops.attention.dot_product import attention

#: Added to the variances of group norm; the authors' number.
EPSILON = 1e-6

#: Initializers of a network, by the fan that they preserve the variance for, and whether last layers start at 0.
Start = Literal["fan_in", "fan_avg", "fan_in_zeros"]


def upsampled(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch twice double channels"]:
    """Every pixel four times: twice the height and width."""
    batch, height, width, channels = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return wide.reshape(batch, 2 * height, 2 * width, channels)


def averaged(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch half halved channels"]:
    """The mean of each 2 x 2 pixels: half the height and width.

    Raises:
      UsageError: sides that can't be halved.
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise UsageError(f"an image of {x.shape[1]} x {x.shape[2]} can't be halved; expected even sides")
    return windows_sum(x, 2) / 4


def uniform_draw(fan_in: int) -> functools.partial:
    """Uniform on +-1 / sqrt(fan-in), called with (key, shape, dtype)."""
    return functools.partial(jax.random.uniform, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)


def groups_of(channels: int, groups: int | None) -> int:
    """`groups`; for None at most 32, of at least 4 channels where there are as many (2011.13456, the authors' code).

    Where 32 or a quarter of the channels does not divide them, the largest divisor below that does.
    """
    if groups is not None:
        return groups
    most = max(1, min(32, channels // 4))
    return next(count for count in range(most, 0, -1) if channels % count == 0)


def draws(start: Start, fan_in: int, last: bool = False, variance: float = 1.0) -> dict[str, Any]:
    """Initializers of a kernel and its bias, as settings of `Dense` or `Convolution`.

    Args:
      start: the rule; see the head of this file.
      fan_in: numbers that an output is a sum of, which "fan_in" and "fan_in_zeros" need.
      last: whether the layer is the last of a block or network, which "fan_avg" starts near 0 and "fan_in_zeros" at 0.
      variance: factor on the variance of "fan_avg" for other layers.
    """
    if start == "fan_in_zeros" and last:
        return dict.fromkeys(("initial", "initial_bias"), nn.initializers.zeros)
    if start != "fan_avg":
        return dict.fromkeys(("initial", "initial_bias"), uniform_draw(fan_in))
    scale = 1e-10 if last else variance
    return {"initial": nn.initializers.variance_scaling(scale, "fan_avg", "uniform")}


def convolution(
    features: int, size: int, channels: int, start: Start = "fan_in", last: bool = False, **settings: Any
) -> Convolution:
    """A convolution of `channels` channels with the initializers of `draws`."""
    return Convolution(features, size, **draws(start, channels * size**2, last), **settings)


class ResidualBlock(nn.Module):
    """S(x) + K_2 * swish(norm(K_1 * swish(norm(x)))); S is a 1 x 1 convolution where the channels change, or nothing.

    With an embedding e of time, W swish(e) + b is added to every place after K_1; or its halves (scale, shift) make
    (1 + scale) norm(.) + shift of the second norm.

    Attributes:
      features: channels of the output.
      groups: of the group norms; None is what `groups_of` says.
      dropout: dropout rate in front of K_2.
      epsilon: of the group norms.
      start: initializers.
      scale_shift: whether the embedding scales and shifts, which is adaptive group norm (2105.05233, section 3.1).
      resample: function of images that changes their size, in front of K_1 and of S; None keeps it.
      projected: whether S is a convolution wherever the block resamples, also between as many channels.
      scale: factor on the sum, such as 1 / sqrt(2) to preserve the variance.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    features: int
    groups: int | None = 32
    dropout: float = 0.0
    epsilon: float = EPSILON
    start: Start = "fan_in"
    scale_shift: bool = False
    resample: Callable | None = None
    projected: bool = False
    scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        embedding: Float[Array, "batch embedded"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch new_height new_width features"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        channels = x.shape[-1]
        norm = lambda of, name: GroupNorm(groups_of(of, self.groups), self.epsilon, **dtypes, name=name)
        convolve = functools.partial(convolution, self.features, start=self.start, **dtypes)
        y = nn.silu(norm(channels, "norm_1")(x))
        if self.resample is not None:
            x, y = self.resample(x), self.resample(y)
        y = convolve(3, channels, name="convolution_1")(y)
        scale = shift = None
        if embedding is not None:
            start = draws(self.start, embedding.shape[-1])
            given = Dense(self.features * (1 + self.scale_shift), **start, **dtypes, name="time")(nn.silu(embedding))
            given = given[:, None, None]
            if self.scale_shift:
                scale, shift = jnp.split(given, 2, axis=-1)
            else:
                y = y + given
        y = norm(self.features, "norm_2")(y)
        y = nn.silu(y if scale is None else (1 + scale) * y + shift)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = convolve(3, self.features, last=True, name="convolution_2")(y)
        if channels != self.features or (self.projected and self.resample is not None):
            x = convolve(1, channels, name="shortcut")(x)
        return scaled(x.astype(y.dtype) + y, self.scale)


def scaled(x: Float[Array, "*shape"], factor: float) -> Float[Array, "*shape"]:
    """factor * x."""
    return x if factor == 1 else x * factor


class SpatialAttention(nn.Module):
    """x + W_o softmax(Q K^T / sqrt(d)) V, attention among all places of the image, with one head unless said otherwise.

    Attributes:
      groups: of the group norm in front; None is what `groups_of` says.
      head_size: channels d of a head; None is all of them, in one head.
      epsilon: of the group norm.
      start: initializers.
      initial_variance: factor on the variance of the initial Q, K and V of "fan_avg".
      scale: factor on the sum.
      dtype: of the computation; the softmax is at least float32.
      parameter_dtype: of the parameters.
    """

    groups: int | None = 32
    head_size: int | None = None
    epsilon: float = EPSILON
    start: Start = "fan_in"
    initial_variance: float = 1.0
    scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        batch, height, width, channels = x.shape
        start = lambda name: draws(self.start, channels, name == "output", self.initial_variance)
        dense = lambda name: Dense(channels, **start(name), **dtypes, name=name)
        y = GroupNorm(groups_of(channels, self.groups), self.epsilon, **dtypes, name="norm")(x).reshape(
            batch, height * width, channels
        )
        heads = (batch, height * width, -1, self.head_size or channels)
        q, k, v = (dense(name)(y).reshape(heads) for name in ("query", "key", "value"))
        y = dense("output")(attention(q, k, v).reshape(y.shape))
        return scaled(x.astype(y.dtype) + y.reshape(x.shape), self.scale)


class Middle(nn.Module):
    """Two residual blocks with attention between them, at the lowest resolution.

    Attributes:
      groups: of the group norms.
      attention: whether there is attention.
      head_size: channels of a head of attention; None is all of them.
      dropout: dropout rate of the residual blocks.
      epsilon: of the group norms.
      start: initializers.
      scale_shift: whether the embedding scales and shifts the residual blocks' second norms.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    groups: int = 32
    attention: bool = True
    head_size: int | None = None
    dropout: float = 0.0
    epsilon: float = EPSILON
    start: Start = "fan_in"
    scale_shift: bool = False
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        embedding: Float[Array, "batch embedded"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        shared = {"epsilon": self.epsilon, "start": self.start}
        shared |= {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        settings = {"scale_shift": self.scale_shift, **shared}
        block = functools.partial(ResidualBlock, x.shape[-1], self.groups, self.dropout, **settings)
        x = block(name="unit_0")(x, embedding, train)
        if self.attention:
            x = SpatialAttention(self.groups, self.head_size, **shared, name="attention")(x)
        return block(name="unit_1")(x, embedding, train)
