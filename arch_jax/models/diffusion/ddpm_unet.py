"""The U-Net of denoising diffusion (Ho et al. 2020, Denoising Diffusion Probabilistic Models, 2006.11239, appendix B).

A network eps(x_t, t) that predicts the noise in an image. On the way down each level has residual blocks and ends in a
convolution of stride 2; on the way up each has one block more, which sees the output of its counterpart beside its
own input, and ends in nearest neighbours and a convolution:

    e = W_2 silu(W_1 s(t) + b_1) + b_2             sines and cosines s(t) of time, then 4 times as wide
    h_1 ... h_n = down(K x_t, e),   m = middle(h_n, e)
    u_i = block([u_{i-1}; h_{n-i+1}], e),   eps = K swish(norm(u_n))

Every block adds a linear function of swish(e) between its two convolutions. At one resolution, 16 x 16, and in the
middle self-attention follows. Classes are no part of the paper; where there are some, the embedding of the label is
added to e, as diffusers has it.
"""

import functools
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import noisy_images
from arch_jax.layers.denoiser import TimeEmbedding, check_classes, label_embedding, labels_of
from arch_jax.layers.facts import CheckpointFacts, facts_field
from arch_jax.layers.norms import GroupNorm
from arch_jax.layers.vision.halving import HalvedImages, check_heads, check_levels
from arch_jax.layers.vision.unet_blocks import (
    EPSILON,
    Middle,
    ResidualBlock,
    SpatialAttention,
    convolution,
    draws,
    upsampled,
)
from arch_jax.ops.convolution.patches import patches, unpatchify
from arch_jax.ops.diffusion.condition import Condition
from arch_jax.ranges import Count, PartialShare
from arch_jax.registry import Paper, register

#: Zeros (before, after) rows and columns for the convolutions of stride 2.
_PADDINGS = {"after": (0, 1), "around": (1, 1)}


@component("ddpm_unet", kind="model")
class DDPMUNet(HalvedImages, nn.Module):
    """A convolutional denoiser of images, "batch height width channels", with times from 0 to 999.

    Height and width may be any multiples of 2 to the number of levels less 1, times `patch`.

    Attributes:
      resolution: resolution in training; others are accepted too.
      channels: 1 for grey, 3 for colour.
      classes: number of classes; None for an unconditional network.
      null_class: whether there is a further class that stands for none, for guidance.
      learned_variance: whether the output has as many channels more, for the variance.
      widths: channels of each level; from one to the next, height and width are halved.
      patch: pixels on a side of a square that is one place of the first level, with all its pixels as channels: a
        smaller network for few resources (Luhman & Luhman 2022, 2207.04316); 1 in the paper.
      units: residual blocks of a level on the way down; on the way up there is one more.
      attention: levels, counted from 0, with attention after each residual block.
      mid_attention: whether there is attention where the resolution is lowest.
      head_size: channels of a head of attention; None is all of them, in one head.
      groups: of the group norms, a divisor of all widths.
      dropout: dropout rate in each residual block.
      epsilon: of the group norms.
      frequency_shift: of the embedding of time, in frequencies.
      cosine_first: whether the cosines of time precede the sines.
      padding: zeros of the convolutions of stride 2: "after" the last row and column alone, or "around" the image.
      dtype: of the computation; norms, softmax, and the sines and cosines of time are at least float32.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    resolution: int = 32
    channels: int = 3
    classes: int | None = None
    null_class: bool = False
    learned_variance: bool = False
    widths: tuple[int, ...] = (128, 256, 256, 256)
    patch: int = 1
    units: int = 2
    attention: tuple[Count, ...] = (1,)
    mid_attention: bool = True
    head_size: int | None = None
    groups: int = 32
    dropout: PartialShare = 0.1
    epsilon: float = EPSILON
    frequency_shift: float = 1.0
    cosine_first: bool = False
    padding: Literal["after", "around"] = "after"
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    facts: CheckpointFacts | None = facts_field()

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("channels", "units")}
        if self.patch < 1 or self.resolution % self.patch:
            near = max(1, self.resolution // max(1, self.patch)) * max(1, self.patch)
            raise UsageError(
                f"resolution is {self.resolution} and patch is {self.patch}; expected a multiple of the patch, such as "
                f"{near}"
            )
        check_levels(self.resolution // self.patch, sizes, self.widths, self.groups, self.attention)
        check_classes(self)
        if self.head_size is not None:
            attended = [self.widths[level] for level in self.attention] + [*self.widths[-1:]] * self.mid_attention
            check_heads("head_size", self.head_size, attended)
        super().__post_init__()

    @property
    def factor(self) -> int:
        """Both sides of an image have to be multiples of it."""
        return self.patch * super().factor

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, "batch"],
        condition: Condition | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width outputs"]:
        """The prediction, such as the noise in x; with a learned variance, its numbers are further channels.

        Args:
          x: noisy images.
          time: of each, from 0 to 999.
          condition: a `label` for each where the network has classes; without one it is the null class.
          train: whether dropout is active; it needs `rngs={"dropout": key}`.

        Raises:
          UsageError: images that `check` refuses; a condition that the network would ignore, or a missing one.
        """
        self.check(x.shape[1:])
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        start = {"start": "fan_avg", **dtypes}
        shared = {"epsilon": self.epsilon, **start}
        block = functools.partial(ResidualBlock, groups=self.groups, dropout=self.dropout, **shared)
        attention = functools.partial(SpatialAttention, self.groups, self.head_size, **shared)
        wide, levels = 4 * self.widths[0], list(enumerate(self.widths))

        initial = draws("fan_avg", 1)["initial"]
        e = TimeEmbedding(
            wide, self.widths[0], self.frequency_shift, self.cosine_first, initial, **dtypes, name="time"
        )(time)
        labels = labels_of(self, condition, len(x))
        if labels is not None:
            e = e + label_embedding(self, wide, initial_std=1.0)(labels)

        sides = x.shape[1:3]
        if self.patch > 1:
            x = patches(x, self.patch).reshape(len(x), *(side // self.patch for side in sides), -1)
        x = convolution(self.widths[0], 3, x.shape[-1], **start, name="stem")(x)
        skips = [x]
        for level, width in levels:
            if level:
                halving = {"stride": 2, "padding": _PADDINGS[self.padding], "name": f"halving_{level}"}
                x = convolution(x.shape[-1], 3, x.shape[-1], **start, **halving)(x)
                skips.append(x)
            for unit in range(self.units):
                x = block(width, name=f"down_{level}_unit_{unit}")(x, e, train)
                if level in self.attention:
                    x = attention(name=f"down_{level}_attention_{unit}")(x)
                skips.append(x)
        middle = {"head_size": self.head_size, "dropout": self.dropout, **shared, "name": "middle"}
        x = Middle(self.groups, self.mid_attention, **middle)(x, e, train)
        for level, width in reversed(levels):
            for unit in range(self.units + 1):
                x = block(width, name=f"up_{level}_unit_{unit}")(jnp.concatenate([x, skips.pop()], -1), e, train)
                if level in self.attention:
                    x = attention(name=f"up_{level}_attention_{unit}")(x)
            if level:
                x = convolution(width, 3, width, **start, name=f"doubling_{level}")(upsampled(x))
        x = nn.silu(GroupNorm(self.groups, self.epsilon, **dtypes, name="norm")(x))
        outputs = self.patch**2 * self.channels * (1 + self.learned_variance)
        x = convolution(outputs, 3, x.shape[-1], last=True, **start, name="outputs")(x)
        return x if self.patch == 1 else unpatchify(x.reshape(len(x), -1, outputs), self.patch, *sides)


_SHARED = {
    "family": "diffusion",
    "objective": "diffusion",
    "paper": Paper("Denoising Diffusion Probabilistic Models", "Ho et al.", 2020, "2006.11239"),
    "architecture": "ddpm",
    "shrink": {"resolution": 4, "widths": (4,), "units": 1, "groups": 2, "attention": (), "dropout": 0.0},
    "reference": "diffusers UNet2DModel: outputs and gradients within 1e-5; the counts are of its models",
    "departures": (
        "Classes and a learned variance are no part of the paper; both are off in the registered networks. With "
        "classes, the label's embedding is added to that of time, as in diffusers.",
    ),
    "difference": 1.3e-6,
    "no_gradient": {"key/bias": "the same term for every key; softmax does not change with it"},
}


@register("ddpm-cifar10", inputs=noisy_images(32), parameters=35_746_307, **_SHARED)
def ddpm_cifar10() -> DDPMUNet:
    """The paper's network for CIFAR-10: four levels from 32 x 32 to 4 x 4, attention at 16 x 16, dropout 0.1."""
    return DDPMUNet()


@register(
    "ddpm-celebahq-256",
    inputs=noisy_images(256),
    parameters=113_673_219,
    **_SHARED,
)
def ddpm_celebahq_256() -> DDPMUNet:
    """The paper's network for CelebA-HQ and LSUN at 256 x 256: six levels, attention at 16 x 16, no dropout."""
    return DDPMUNet(resolution=256, widths=(128, 128, 256, 256, 512, 512), attention=(4,), dropout=0.0)
