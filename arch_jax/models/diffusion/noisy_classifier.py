"""The classifier of noisy images that guides a diffusion (Dhariwal & Nichol 2021, 2105.05233, section 4).

log p(y | x_t, t): the half of the U-Net from the image to 8 x 8, and attention pooling as in CLIP. The mean of all
places asks once among itself and the places:

    h = silu(norm(encoder(x_t, t))),   z = [mean(h); h] + P
    logits = W_o softmax(q(z_0) k(z)^T / sqrt(d)) v(z) + b_o
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import noisy_labelled_images
from arch_jax.layers.dense import Dense
from arch_jax.layers.norms import GroupNorm
from arch_jax.layers.vision.unet_blocks import draws
from arch_jax.layers.vision.unet_encoder import SHARED, UNetEncoder, check_unet, unet_settings, unet_time
from arch_jax.ops.attention.dot_product import attention
from arch_jax.ranges import Count, PartialShare
from arch_jax.registry import Paper, register


class AttentionPool(nn.Module):
    """One vector of an image: its mean attends to itself and to all places (Radford et al. 2021, 2103.00020, 2.4).

    Attributes:
      features: numbers of the output.
      head_size: channels of a head, which divide those of the image.
      dtype: of the computation; the softmax is at least float32.
      parameter_dtype: of the parameters.
    """

    features: int
    head_size: int
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch features"]:
        batch, height, width, channels = x.shape
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        start = draws("fan_in", channels)
        normal = nn.initializers.normal(channels**-0.5)
        places = self.param("position_embedding", normal, (height * width + 1, channels), self.parameter_dtype)
        x = x.reshape(batch, height * width, channels)
        z = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1).astype(self.dtype) + places.astype(self.dtype)
        heads = lambda y: y.reshape(*y.shape[:2], -1, self.head_size)
        dense = lambda name: Dense(channels, **start, **dtypes, name=name)
        q, k, v = heads(dense("query")(z[:, :1])), heads(dense("key")(z)), heads(dense("value")(z))
        y = attention(q, k, v).reshape(batch, channels)
        return Dense(self.features, **start, **dtypes, name="output")(y)


@component("noisy_classifier", kind="model")
class NoisyClassifier(nn.Module):
    """A classifier of noisy images, "batch height width channels", that is told how noisy they are.

    Attributes:
      resolution: of the images; pooling knows each place, so that no other is accepted.
      channels: 1 for grey, 3 for colour.
      classes: number of classes.
      widths: channels of each level; from one to the next, height and width are halved.
      units: residual blocks of a level.
      attention: levels, counted from 0, with attention after each residual block; in the middle there always is.
      head_size: channels of a head of attention, and of pooling.
      groups: of the group norms, a divisor of all widths.
      dropout: dropout rate in each residual block.
      scale_shift: whether time scales and shifts the second norm of each block, rather than be added before it.
      resample_blocks: whether residual blocks halve the image, rather than convolutions.
      dtype: of the computation; norms, softmax, and the sines and cosines of time are at least float32.
      parameter_dtype: of the parameters.
    """

    resolution: int = 64
    channels: int = 3
    classes: int = 1000
    widths: tuple[int, ...] = (128, 256, 384, 512)
    units: int = 4
    attention: tuple[Count, ...] = (1, 2, 3)
    head_size: int = 64
    groups: int = 32
    dropout: PartialShare = 0.0
    scale_shift: bool = True
    resample_blocks: bool = True
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    #: Heads are counted by their width alone.
    heads = 1

    def __post_init__(self) -> None:
        check_unet(self)
        if self.classes < 1:
            raise UsageError(f"classes is {self.classes}; expected at least 1")
        super().__post_init__()

    def check(self, shape: Any) -> None:
        """Refuses images that the network can't take.

        Raises:
          UsageError: `shape` ("height width channels") is not that of the network's images.
        """
        expected = (self.resolution, self.resolution, self.channels)
        if tuple(shape) != expected:
            written, wanted = (" x ".join(map(str, one)) for one in (shape, expected))
            raise UsageError(f"the images have the shape {written}, and the model takes {wanted} alone; expected those")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, "batch"],
        train: bool = False,
    ) -> Float[Array, "batch classes"]:
        """The logits of log p(y | x_t).

        Args:
          x: noisy images.
          time: of each, from 0 to 999.
          train: whether dropout is active; it needs `rngs={"dropout": key}`.

        Raises:
          UsageError: images that `check` refuses.
        """
        self.check(x.shape[1:])
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        x, _ = UNetEncoder(**unet_settings(self), name="encoder")(x, unet_time(self)(time), train)
        x = nn.silu(GroupNorm(self.groups, SHARED["epsilon"], **dtypes, name="norm")(x))
        return AttentionPool(self.classes, self.head_size, **dtypes, name="pool")(x)


def _register(size: int, widths: tuple[int, ...], units: int, count: int) -> None:
    """Registers one of guided diffusion's classifiers, with attention at the three resolutions 32, 16 and 8."""
    levels = tuple(level for level in range(len(widths)) if size >> level in (32, 16, 8))

    @register(
        f"adm-classifier-{size}",
        family="diffusion",
        objective="noisy_classification",
        paper=Paper("Diffusion Models Beat GANs on Image Synthesis", "Dhariwal & Nichol", 2021, "2105.05233"),
        inputs=noisy_labelled_images(size),
        parameters=count,
        architecture="noisy_classifier",
        shrink={
            "resolution": 4,
            "classes": 3,
            "widths": (4, 4),
            "units": 1,
            "attention": (),
            "head_size": 2,
            "groups": 2,
        },
        reference="guided_diffusion EncoderUNetModel with attention pooling: outputs and gradients within 1e-5; the "
        "counts are of its models",
        departures=(
            "Pooling computes the answer of the mean alone; the authors' code computes those of all places and takes "
            "the first.",
            "Queries, keys and values are three layers; in the authors' code one.",
        ),
        difference=2.0e-6,
        no_gradient={"key/bias": "the same term for every key; softmax does not change with it"},
    )
    def build() -> NoisyClassifier:
        return NoisyClassifier(resolution=size, widths=widths, units=units, attention=levels)

    build.__doc__ = f"Guided diffusion's classifier for ImageNet at {size} x {size}, of {units} blocks a level."


_register(64, (128, 256, 384, 512), 4, 65_438_568)
_register(128, (128, 128, 256, 384, 512), 2, 42_568_040)
_register(256, (128, 128, 256, 256, 512, 512), 2, 54_096_360)
