"""The convolutional encoder and decoder of VQGAN and of latent diffusion.

Esser et al. 2021 (2012.09841, table 7): residual blocks with group norm and the swish activation; convolutions of
stride 2 down, nearest neighbours and a convolution up; attention between two blocks where the resolution is lowest.
Rombach et al. 2022 (2112.10752, appendix G) adopt them. Everything is convolutional, so that images of any size
that can be halved often enough pass.

Convolutions and linear layers start as PyTorch's default, which the authors kept: kernels and biases uniform
in +-1 / sqrt(fan-in).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType
from arch_jax.layers.norms import GroupNorm
from arch_jax.layers.vision.unet_blocks import EPSILON, Middle, ResidualBlock, SpatialAttention, convolution, upsampled


def check_coders(
    resolution: int,
    channels: int,
    latent: int,
    widths: tuple[int, ...],
    units: int,
    groups: int,
    levels: tuple[int, ...],
) -> None:
    """Checks the settings of an encoder and decoder.

    Args:
      resolution, channels, latent, widths, units, groups: as in `LatentEncoder` and the models.
      levels: those with attention.

    Raises:
      UsageError: a size below 1; widths that `groups` does not divide; a level that does not exist; an image that can't
        be halved between the levels.
    """
    for name, size in (("resolution", resolution), ("channels", channels), ("latent", latent), ("units", units)):
        if size < 1:
            raise UsageError(f"{name} is {size}; expected at least 1")
    if not widths or groups < 1 or any(width < 1 or width % groups for width in widths):
        raise UsageError(f"widths is {widths} and groups is {groups}; expected multiples of the groups, at least one")
    for level in levels:
        if not 0 <= level < len(widths):
            raise UsageError(
                f"attention is {levels}; expected levels from 0 to {len(widths) - 1}, of which widths says"
            )
    factor = 2 ** (len(widths) - 1)
    if resolution % factor:
        near = max(factor, round(resolution / factor) * factor)
        raise UsageError(
            f"resolution is {resolution}, which {len(widths) - 1} convolutions can't halve; expected a multiple of "
            f"{factor}, such as {near}"
        )


def check_sides(factor: int, channels: int, shape: Any) -> None:
    """Refuses images that can't be halved often enough, or of another number of channels.

    Args:
      factor: both sides have to be multiples of it.
      channels: of the model.
      shape: "height width channels".

    Raises:
      UsageError: if the image's sides are no multiples of `factor`, or it has another number of channels.
    """
    if len(shape) == 3 and not (shape[0] % factor or shape[1] % factor) and shape[2] == channels and min(shape) > 0:
        return
    near = [max(factor, round(side / factor) * factor) for side in (*shape, factor, factor)[:2]]
    raise UsageError(
        f"the images have the shape {' x '.join(map(str, shape))}, and the model takes sides that are multiples of "
        f"{factor} with {channels} channels; expected such as {near[0]} x {near[1]} x {channels}"
    )


class LatentEncoder(nn.Module):
    """An image to a smaller one: a level for each width, half as high and wide as the one before.

    Between levels, the convolution of stride 2 has zeros to the right of the image and below it only.

    Attributes:
      outputs: channels of the output.
      widths: channels of each level.
      units: residual blocks of a level.
      groups: of the group norms.
      attention: levels, counted from 0, with attention after each residual block.
      mid_attention: whether there is attention between the last two residual blocks.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    outputs: int
    widths: tuple[int, ...]
    units: int = 2
    groups: int = 32
    attention: tuple[int, ...] = ()
    mid_attention: bool = True
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w outputs"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        x = convolution(self.widths[0], 3, x.shape[-1], **dtypes, name="stem")(x)
        for level, width in enumerate(self.widths):
            if level:
                halving = {"stride": 2, "padding": (0, 1), "name": f"halving_{level}"}
                x = convolution(x.shape[-1], 3, x.shape[-1], **dtypes, **halving)(x)
            for unit in range(self.units):
                x = ResidualBlock(width, self.groups, **dtypes, name=f"level_{level}_unit_{unit}")(x)
                if level in self.attention:
                    x = SpatialAttention(self.groups, **dtypes, name=f"level_{level}_attention_{unit}")(x)
        x = Middle(self.groups, self.mid_attention, **dtypes, name="middle")(x)
        x = nn.silu(GroupNorm(self.groups, EPSILON, **dtypes, name="norm")(x))
        return convolution(self.outputs, 3, x.shape[-1], **dtypes, name="outputs")(x)


class LatentDecoder(nn.Module):
    """The decoder: a `LatentEncoder` in reverse, with one more residual block on each level.

    Attributes:
      channels: of the image.
      widths: channels of the encoder's levels; here they stand in reverse order.
      units: residual blocks of a level of the encoder.
      groups: of the group norms.
      attention: the encoder's levels with attention after each residual block.
      mid_attention: whether there is attention between the first two residual blocks.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    channels: int
    widths: tuple[int, ...]
    units: int = 2
    groups: int = 32
    attention: tuple[int, ...] = ()
    mid_attention: bool = True
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "batch h w latent"]) -> Float[Array, "batch height width channels"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        x = convolution(self.widths[-1], 3, z.shape[-1], **dtypes, name="stem")(z)
        x = Middle(self.groups, self.mid_attention, **dtypes, name="middle")(x)
        for level, width in reversed(list(enumerate(self.widths))):
            for unit in range(self.units + 1):
                x = ResidualBlock(width, self.groups, **dtypes, name=f"level_{level}_unit_{unit}")(x)
                if level in self.attention:
                    x = SpatialAttention(self.groups, **dtypes, name=f"level_{level}_attention_{unit}")(x)
            if level:
                x = convolution(width, 3, width, **dtypes, name=f"doubling_{level}")(upsampled(x))
        x = nn.silu(GroupNorm(self.groups, EPSILON, **dtypes, name="norm")(x))
        return convolution(self.channels, 3, x.shape[-1], **dtypes, name="outputs")(x)
