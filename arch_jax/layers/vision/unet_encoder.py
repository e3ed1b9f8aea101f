"""The half of a U-Net from the image to the lowest resolution, as improved and guided diffusion have it.

Nichol & Dhariwal 2021 (2102.09672) and Dhariwal & Nichol 2021 (2105.05233, section 3): a whole U-Net goes back up from
it; a classifier of noisy images reads its output.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType
from arch_jax.layers.denoiser import TimeEmbedding
from arch_jax.layers.vision.halving import check_heads, check_levels
from arch_jax.layers.vision.unet_blocks import (
    Middle,
    ResidualBlock,
    SpatialAttention,
    averaged,
    convolution,
)

#: Of all layers of these networks: PyTorch's epsilon of group norm, and initializers.
SHARED = {"epsilon": 1e-5, "start": "fan_in_zeros"}


def check_unet(owner: Any) -> None:
    """Refuses settings of `UNetEncoder` that make no network.

    Args:
      owner: has them as fields, and `resolution` and `channels` of its images.

    Raises:
      UsageError: those of `check_levels`; heads that do not divide a width that is attended.
    """
    sizes = {name: getattr(owner, name) for name in ("channels", "units", "heads")}
    check_levels(owner.resolution, sizes, owner.widths, owner.groups, owner.attention)
    name = "heads" if owner.head_size is None else "head_size"
    check_heads(name, getattr(owner, name), [owner.widths[level] for level in (*owner.attention, -1)])


def unet_settings(owner: Any) -> dict[str, Any]:
    """The fields that `UNetEncoder` has in common with the network that it is a part of."""
    names = ("widths", "units", "attention", "heads", "head_size", "groups", "dropout", "scale_shift")
    names += ("resample_blocks", "dtype", "parameter_dtype")
    return {name: getattr(owner, name) for name in names}


def unet_time(owner: nn.Module) -> TimeEmbedding:
    """Time as cosines and sines and two layers, 4 times as wide as the first level; named "time".

    It starts as PyTorch's linear layers do.
    """
    features = owner.widths[0]
    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # +-1 / sqrt(fan-in)
    settings = {"cosine_first": True, "initial": uniform, "uniform_bias": True}
    settings |= {"dtype": owner.dtype, "parameter_dtype": owner.parameter_dtype}
    return TimeEmbedding(4 * features, features, **settings, parent=owner, name="time")


def unet_layers(owner: Any) -> tuple[Callable[..., ResidualBlock], Callable[..., SpatialAttention]]:
    """Constructors of residual blocks and of attention, (width, name=...), for a network with these fields."""
    shared = {**SHARED, "dtype": owner.dtype, "parameter_dtype": owner.parameter_dtype}
    conditioned = {"dropout": owner.dropout, "scale_shift": owner.scale_shift, **shared}
    block = functools.partial(ResidualBlock, groups=owner.groups, **conditioned)

    def attention(width: int, name: str) -> SpatialAttention:
        return SpatialAttention(owner.groups, owner.head_size or width // owner.heads, **shared, name=name)

    return block, attention


class UNetEncoder(nn.Module):
    """A convolution, then residual blocks at ever lower resolutions, and the middle.

    Attributes:
      widths: channels of each level; from one to the next, height and width are halved.
      units: residual blocks of a level.
      attention: levels, counted from 0, with attention after each residual block; in the middle there always is.
      heads: of attention.
      head_size: channels of a head, instead of a number of heads; None for that.
      groups: of the group norms.
      dropout: dropout rate in each residual block.
      scale_shift: whether time scales and shifts the second norm of each block, rather than be added before it.
      resample_blocks: whether residual blocks halve the image, rather than convolutions of stride 2.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    widths: tuple[int, ...]
    units: int
    attention: tuple[int, ...]
    heads: int = 1
    head_size: int | None = None
    groups: int = 32
    dropout: float = 0.0
    scale_shift: bool = True
    resample_blocks: bool = True
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], embedding: Float[Array, "batch embedded"], train: bool
    ) -> tuple[Float[Array, "batch low narrow features"], list[Array]]:
        """The image at the lowest resolution, and what every part on the way gave, for the way back up."""
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        block, attention = unet_layers(self)
        convolve = functools.partial(convolution, start=SHARED["start"], **dtypes)
        x = convolve(self.widths[0], 3, x.shape[-1], name="stem")(x)
        skips = [x]
        for level, width in enumerate(self.widths):
            if level:
                halving, before = f"halving_{level}", x.shape[-1]
                if self.resample_blocks:
                    x = block(before, resample=averaged, name=halving)(x, embedding, train)
                else:
                    x = convolve(before, 3, before, stride=2, padding=(1, 1), name=halving)(x)
                skips.append(x)
            for unit in range(self.units):
                x = block(width, name=f"level_{level}_unit_{unit}")(x, embedding, train)
                if level in self.attention:
                    x = attention(width, name=f"level_{level}_attention_{unit}")(x)
                skips.append(x)
        heads = {"head_size": self.head_size or x.shape[-1] // self.heads}
        settings = {"dropout": self.dropout, "scale_shift": self.scale_shift, **heads, **SHARED, **dtypes}
        return Middle(self.groups, **settings, name="middle")(x, embedding, train), skips
