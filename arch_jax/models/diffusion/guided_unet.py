"""The U-Net of improved and of guided diffusion, in the literature ADM.

Nichol & Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models (2102.09672), and Dhariwal & Nichol 2021,
Diffusion Models Beat GANs on Image Synthesis (2105.05233, sections 3 and 3.1). It has the shape of DDPM's, and differs
in four things:

    block(x, e) = S(x) + K_2 silu((1 + a) norm(K_1 silu(norm(x))) + b),   (a, b) = W silu(e)

so that time scales and shifts a norm (adaptive group norm); attention has several heads and stands at several
resolutions; and in guided diffusion residual blocks halve and double the image, where improved diffusion has
convolutions. A second half of the output says where between its bounds the variance lies (2102.09672, equation 15).
The embedding of the class is added to e, that of time.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType, component
from arch_jax.inputs import noisy_images
from arch_jax.layers.denoiser import check_classes, label_embedding, labels_of
from arch_jax.layers.norms import GroupNorm
from arch_jax.layers.vision.halving import HalvedImages
from arch_jax.layers.vision.unet_blocks import convolution, upsampled
from arch_jax.layers.vision.unet_encoder import (
    SHARED,
    UNetEncoder,
    check_unet,
    unet_layers,
    unet_settings,
    unet_time,
)
from arch_jax.ops.diffusion.condition import Condition
from arch_jax.ranges import Count, PartialShare
from arch_jax.registry import Paper, register


@component("guided_unet", kind="model")
class GuidedUNet(HalvedImages, nn.Module):
    """A convolutional denoiser of images, "batch height width channels", with times from 0 to 999.

    Height and width may be any multiples of 2 to the number of levels less 1.

    Attributes:
      resolution: resolution in training; others are accepted too.
      channels: 1 for grey, 3 for colour.
      classes: number of classes; None for an unconditional network.
      null_class: whether there is a further class that stands for none, for guidance.
      learned_variance: whether the output has as many channels more, for the variance.
      widths: channels of each level; from one to the next, height and width are halved.
      units: residual blocks of a level on the way down; on the way up there is one more.
      attention: levels, counted from 0, with attention after each residual block; in the middle there always is.
      heads: of attention.
      head_size: channels of a head, instead of a number of heads; None for that.
      groups: of the group norms, a divisor of all widths.
      dropout: dropout rate in each residual block.
      scale_shift: whether time scales and shifts the second norm of each block, rather than be added before it.
      resample_blocks: whether residual blocks halve and double the image, rather than convolutions.
      dtype: of the computation; norms, softmax, and the sines and cosines of time are at least float32.
      parameter_dtype: of the parameters.
    """

    resolution: int = 64
    channels: int = 3
    classes: int | None = None
    null_class: bool = False
    learned_variance: bool = False
    widths: tuple[int, ...] = (192, 384, 576, 768)
    units: int = 3
    attention: tuple[Count, ...] = (1, 2, 3)
    heads: int = 4
    head_size: int | None = None
    groups: int = 32
    dropout: PartialShare = 0.0
    scale_shift: bool = True
    resample_blocks: bool = True
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_unet(self)
        check_classes(self)
        super().__post_init__()

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
        start = {"start": SHARED["start"], **dtypes}
        block, attention = unet_layers(self)

        e = unet_time(self)(time)
        labels = labels_of(self, condition, len(x))
        if labels is not None:
            e = e + label_embedding(self, e.shape[-1], initial_std=1.0)(labels)
        x, skips = UNetEncoder(**unet_settings(self), name="encoder")(x, e, train)
        for level, width in reversed(list(enumerate(self.widths))):
            for unit in range(self.units + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(width, name=f"level_{level}_unit_{unit}")(x, e, train)
                if level in self.attention:
                    x = attention(width, name=f"level_{level}_attention_{unit}")(x)
            if level and self.resample_blocks:
                x = block(width, resample=upsampled, name=f"doubling_{level}")(x, e, train)
            elif level:
                x = convolution(width, 3, width, **start, name=f"doubling_{level}")(upsampled(x))
        x = nn.silu(GroupNorm(self.groups, SHARED["epsilon"], **dtypes, name="norm")(x))
        outputs = self.channels * (1 + self.learned_variance)
        return convolution(outputs, 3, x.shape[-1], last=True, **start, name="outputs")(x)


_IMPROVED = Paper("Improved Denoising Diffusion Probabilistic Models", "Nichol & Dhariwal", 2021, "2102.09672")
_GUIDED = Paper("Diffusion Models Beat GANs on Image Synthesis", "Dhariwal & Nichol", 2021, "2105.05233")
_SHARED = {
    "family": "diffusion",
    "objective": "diffusion",
    "architecture": "guided_unet",
    "shrink": {
        "resolution": 4,
        "learned_variance": False,
        "widths": (4, 4),
        "units": 1,
        "attention": (),
        "heads": 2,
        "head_size": None,
        "groups": 2,
        "dropout": 0.0,
    },
    "reference": "improved_diffusion and guided_diffusion UNetModel: outputs and gradients within 1e-5; the counts are "
    "of its models",
    "departures": (
        "Queries, keys and values are three layers; in the authors' code one, whose outputs are cut into heads before "
        "or after they are cut into the three: an order of the weights, and the same network.",
        "There may be a null class, which the authors' networks do not have.",
        "The authors' models of 4,000 steps that were not told rescaled times, such as that of ImageNet 64 with "
        "classes, saw times from 0 to 3,999.",
    ),
    "difference": 2.0e-6,
    "no_gradient": {"key/bias": "the same term for every key; softmax does not change with it"},
}


def _guided(size: int, widths: tuple[int, ...], count: int, classes: int | None = 1000, **fields: Any) -> None:
    """Registers one of guided diffusion's networks, with attention at the three resolutions 32, 16 and 8."""
    levels = tuple(level for level in range(len(widths)) if size >> level in (32, 16, 8))
    name = f"adm-imagenet-{size}" + ("" if classes else "-unconditional")
    shared = _SHARED | {"shrink": _SHARED["shrink"] | ({"classes": 3} if classes else {})}

    @register(name, inputs=noisy_images(size, classes=classes), parameters=count, paper=_GUIDED, **shared)
    def build() -> GuidedUNet:
        known = {"resolution": size, "classes": classes, "learned_variance": True}
        return GuidedUNet(**known, widths=widths, attention=levels, **fields)

    told = "with 1,000 classes" if classes else "without classes"
    build.__doc__ = f"Guided diffusion's network for ImageNet at {size} x {size}, {told} and a learned variance."


_guided(64, (192, 384, 576, 768), 295_904_454, units=3, head_size=64, dropout=0.1)
_guided(128, (256, 256, 512, 768, 1024), 421_529_606, units=2, heads=4)
_guided(256, (256, 256, 512, 512, 1024, 1024), 553_838_086, units=2, head_size=64)
_guided(256, (256, 256, 512, 512, 1024, 1024), 552_814_086, classes=None, units=2, head_size=64)


def _improved(
    name: str, size: int, widths: tuple[int, ...], count: int, about: str, classes: int | None = None, **fields: Any
) -> None:
    """Registers one of improved diffusion's networks, with attention of 4 heads at the resolutions 16 and 8."""
    levels = tuple(level for level in range(len(widths)) if size >> level in (16, 8))
    shared = _SHARED | {"shrink": _SHARED["shrink"] | ({"classes": 3} if classes else {})}

    @register(name, inputs=noisy_images(size, classes=classes), parameters=count, paper=_IMPROVED, **shared)
    def build() -> GuidedUNet:
        known = {"resolution": size, "classes": classes, "learned_variance": True, "resample_blocks": False}
        return GuidedUNet(**known, widths=widths, attention=levels, **fields)

    build.__doc__ = f"Improved diffusion's network for {about}, with a learned variance."


_improved("improved-ddpm-cifar10", 32, (128, 256, 256, 256), 52_546_438, "CIFAR-10", dropout=0.3)
_improved("improved-ddpm-imagenet-64", 64, (128, 256, 384, 512), 121_063_942, "ImageNet at 64 x 64")
_improved(
    "improved-ddpm-imagenet-64-class",
    64,
    (192, 384, 576, 768),
    273_049_350,
    "ImageNet at 64 x 64 with 1,000 classes",
    classes=1000,
)
