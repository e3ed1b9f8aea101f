"""The convolutional encoder and decoder of VQGAN and of latent diffusion.

Esser et al. 2021 (2012.09841, table 7): residual blocks with group norm and the swish activation; convolutions of
stride 2 down, nearest neighbours and a convolution up; attention between two blocks where the resolution is lowest.
Rombach et al. 2022 (2112.10752, appendix G) adopt them. Everything is convolutional, so that images of any size
that can be halved often enough pass.

Convolutions and linear layers start as PyTorch's default, which the authors kept: kernels and biases uniform
in +-1 / sqrt(fan-in).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType
from arch_jax.layers.norms import GroupNorm
from arch_jax.layers.vision.unet_blocks import EPSILON, Middle, ResidualBlock, SpatialAttention, convolution, upsampled


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
