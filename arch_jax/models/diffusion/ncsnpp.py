"""NCSN++ and DDPM++, the U-Nets of score-based models (Song et al. 2021, 2011.13456, section 4.4 and appendix H).

DDPM's U-Net (Ho et al. 2020, 2006.11239) with five changes: residual blocks as in BigGAN, which also halve and double
the image; every sum divided by sqrt(2); a filter against aliasing; more blocks a level; and the image itself shown to
each level of the way down ("input_pyramid"), or an image made by each level of the way up ("output_pyramid").

    e = W_2 silu(W_1 s(t) + b_1) + b_2             s: sines and cosines, or random Fourier features of log sigma
    block(x, e) = (S(x) + K_2 silu(norm(K_1 silu(norm(x)) + W silu(e)))) / sqrt(2)
    residual:  p_l = (h_l + K down(p_{l-1})) / sqrt(2),  h_l := p_l          p_0 the image
    skip:      h_l := h_l + K p_l,                       p_l = down(p_{l-1})

NCSN++ has Fourier features, the filter and the residual pyramid of inputs; DDPM++ has sines and cosines of time, means
of 2 x 2 pixels, and no pyramid. Attention stands at 16 x 16: on the way down after every block, on the way up after
the last of the level, and in the middle.

EDM's networks (Karras et al. 2022) are these with other widths, classes and augmentation: see `edm_unet`.
"""

import functools
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import noisy_images
from arch_jax.layers.denoiser import TimeEmbedding, check_classes, labels_of
from arch_jax.layers.dense import Dense
from arch_jax.layers.norms import GroupNorm
from arch_jax.layers.vision.halving import HalvedImages, check_levels
from arch_jax.layers.vision.unet_blocks import (
    EPSILON,
    ResidualBlock,
    SpatialAttention,
    convolution,
    draws,
    groups_of,
)
from arch_jax.ops.convolution.resampling import check_taps, doubled, filtered, halved
from arch_jax.ops.diffusion.condition import Condition
from arch_jax.ranges import Count, PartialShare, Positive, Signed
from arch_jax.registry import Paper, register

#: Factor on the sum of two terms, so that it has their variance.
_HALF = 0.5**0.5
#: Factor on the variance of the initial query, key and value, in the authors' code.
_ATTENTION_VARIANCE = 0.1

Pyramid = Literal["none", "skip", "residual"]


@component("ncsnpp", kind="model")
class NCSNpp(HalvedImages, nn.Module):
    """A convolutional denoiser of images, "batch height width channels".

    Height and width may be any multiples of 2 to the number of levels less 1.

    Attributes:
      resolution: resolution in training; others are accepted too.
      channels: 1 for grey, 3 for colour.
      classes: number of classes; None for an unconditional network.
      null_class: whether the label `classes` stands for none, for guidance: a label of which nothing is added.
      augmentation: numbers that describe how an example was transformed; 0 for a network that is not told.
      width: channels of the first convolution; the embedding of time is four times as wide.
      widths: channels of each level; from one to the next, height and width are halved.
      units: residual blocks of a level on the way down; on the way up there is one more.
      attention: levels, counted from 0, with attention.
      embedding: of time: "sinusoidal" or "fourier".
      fourier_scale: standard deviation of the random frequencies.
      time_scale: factor on the time that the network is told.
      time_shift: added to that product.
      fir: weights of the filter that halves and doubles images, along a side; (1, 1) is the mean of 2 x 2 pixels, and
        every pixel four times.
      input_pyramid: how the image, halved again and again, enters the way down.
      output_pyramid: how the way up makes images: their sum over all levels is the output ("skip"), or features are
        carried on ("residual"), or neither.
      dropout: dropout rate in each residual block.
      epsilon: of the group norms.
      dtype: of the computation; norms, softmax, filters, and the sines and cosines of time are at least float32.
      parameter_dtype: of the parameters; of the random frequencies at least float32.
    """

    resolution: int = 32
    channels: int = 3
    classes: int | None = None
    null_class: bool = False
    augmentation: Count = 0
    width: int = 128
    widths: tuple[int, ...] = (128, 256, 256, 256)
    units: int = 4
    attention: tuple[Count, ...] = (1,)
    embedding: Literal["sinusoidal", "fourier"] = "fourier"
    fourier_scale: Positive = 16.0
    time_scale: Positive = 1.0
    time_shift: Signed = 0.0
    fir: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    input_pyramid: Pyramid = "residual"
    output_pyramid: Pyramid = "none"
    dropout: PartialShare = 0.1
    epsilon: float = EPSILON
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("channels", "width", "units")}
        check_levels(self.resolution, sizes, self.widths, 1, self.attention)
        check_classes(self)
        check_taps(self.fir)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, "batch"],
        condition: Condition | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """The prediction, such as the noise in x.

        Args:
          x: noisy images.
          time: of each, as its process tells it.
          condition: a `label` for each where the network has classes; `augmentation` where it is told of it, which is
            zeros, nothing done, without.
          train: whether dropout is active; it needs `rngs={"dropout": key}`.

        Raises:
          UsageError: images that `check` refuses; a condition that the network would ignore, or a missing one.
        """
        self.check(x.shape[1:])
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        start = {"start": "fan_avg", **dtypes}
        shared = {"epsilon": self.epsilon, "scale": _HALF, **start}
        block = functools.partial(ResidualBlock, groups=None, projected=True, dropout=self.dropout, **shared)
        attend = functools.partial(SpatialAttention, None, initial_variance=_ATTENTION_VARIANCE, **shared)
        halve, double = (functools.partial(resample, taps=self.fir) for resample in (halved, doubled))
        e, levels = self._embedded(time, condition, dtypes), list(enumerate(self.widths))

        def ended(h: jax.Array, features: int, level: str, last: bool = True) -> jax.Array:
            norm = GroupNorm(groups_of(h.shape[-1], None), self.epsilon, **dtypes, name=f"norm{level}")
            y = nn.silu(norm(h))
            return convolution(features, 3, h.shape[-1], last=last, **start, name=f"outputs{level}")(y)

        image, x = x, convolution(self.width, 3, self.channels, **start, name="stem")(x)
        skips = [x]
        for level, width in levels:
            if level:
                x = block(x.shape[-1], resample=halve, name=f"halving_{level}")(x, e, train)
                image, x = self._shown(image, x, f"input_{level}", start)
                skips.append(x)
            for unit in range(self.units):
                x = block(width, name=f"down_{level}_unit_{unit}")(x, e, train)
                if level in self.attention:
                    x = attend(name=f"down_{level}_attention_{unit}")(x)
                skips.append(x)
        x = block(x.shape[-1], name="middle_unit_0")(x, e, train)
        x = attend(name="middle_attention")(x)
        x = block(x.shape[-1], name="middle_unit_1")(x, e, train)

        made = None
        for level, width in reversed(levels):
            for unit in range(self.units + 1):
                x = block(width, name=f"up_{level}_unit_{unit}")(jnp.concatenate([x, skips.pop()], -1), e, train)
            if level in self.attention:
                x = attend(name=f"up_{level}_attention")(x)
            if self.output_pyramid == "skip":
                y = ended(x, self.channels, f"_{level}")
                made = y if made is None else double(made) + y
            elif self.output_pyramid == "residual" and made is None:
                made = ended(x, width, f"_{level}", last=False)
            elif self.output_pyramid == "residual":
                grow = convolution(width, 3, made.shape[-1], padding=0, **start, name=f"output_{level}")
                x = made = (grow(double(made, margin=1)) + x) * _HALF
            if level:
                x = block(width, resample=double, name=f"doubling_{level}")(x, e, train)
        return made if self.output_pyramid == "skip" else ended(x, self.channels, "")

    def _embedded(
        self, time: Float[Array, "batch"], condition: Condition | None, dtypes: dict[str, Any]
    ) -> Float[Array, "batch embedded"]:
        """The embedding of time, label and augmentation."""
        time = time.astype(jnp.promote_types(time.dtype, jnp.float32)) * self.time_scale + self.time_shift
        fourier = self.embedding == "fourier"
        features = self.width * (1 + fourier)
        initial = draws("fan_avg", 1)["initial"]
        given = ("augmentation",) if self.augmentation else ()
        labels, added = labels_of(self, condition, len(time), others=given), None
        if labels is not None:
            # A label beyond the null class becomes NaN, and is seen; the null class is zeros.
            known = (labels >= 0) & (labels < self.classes + self.null_class)
            one_hot = jnp.where(known[:, None], jax.nn.one_hot(labels, self.classes), jnp.nan)
            added = Dense(features, initial=initial, **dtypes, name="label")(one_hot * math.sqrt(self.classes))
        if self.augmentation:
            told = None if condition is None else condition.augmentation
            told = jnp.zeros((len(time), self.augmentation)) if told is None else told
            if jnp.shape(told) != (len(time), self.augmentation):
                raise UsageError(
                    f"the augmentation has the shape {jnp.shape(told)}; expected ({len(time)}, {self.augmentation}), "
                    f"{self.augmentation} numbers for each example"
                )
            y = Dense(features, bias=False, initial=initial, **dtypes, name="augmentation")(jnp.asarray(told))
            added = y if added is None else added + y
        embedding = TimeEmbedding(
            4 * self.width,
            features,
            shift=1.0,
            initial=initial,
            fourier=self.fourier_scale if fourier else None,
            **dtypes,
            name="time",
        )
        return embedding(time, added)

    def _shown(self, image: jax.Array, x: jax.Array, name: str, start: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        """The image at the next level and the features that have seen it."""
        width, channels = x.shape[-1], image.shape[-1]
        if self.input_pyramid == "skip":
            image = halved(image, self.fir)
            return image, x + convolution(width, 1, channels, **start, name=name)(image)
        if self.input_pyramid == "residual":
            seen = convolution(width, 3, channels, stride=2, padding=0, **start, name=name)
            x = (seen(filtered(image, self.fir, margin=1)) + x) * _HALF
            return x, x
        return image, x


#: Time as the house tells it, 999 t, in which the noise level of the paper's process for NCSN++ is
#: log sigma = log 0.01 + t log(50 / 0.01).
_LOG_SIGMA = {"time_scale": math.log(50 / 0.01) / 999, "time_shift": math.log(0.01)}
#: What is said of every network of this kind; `edm_unet` has it too.
SHARED = {
    "family": "diffusion",
    "objective": "diffusion",
    "shrink": {"resolution": 4, "width": 4, "widths": (4, 8), "units": 1, "attention": (1,), "dropout": 0.0},
    "reference": "the authors' code in PyTorch, by hand: outputs and gradients within 1e-5; a restatement of it in the "
    "tests",
    "difference": 1.3e-6,
}
STILL = {"key/bias": "the same term for every key; softmax does not change with it"}
FIXED = {"time/frequencies": "random Fourier features are drawn once and not trained"}
_SONG = SHARED | {
    "paper": Paper(
        "Score-Based Generative Modeling through Stochastic Differential Equations", "Song et al.", 2021, "2011.13456"
    ),
    "architecture": "ncsnpp",
    "inputs": noisy_images(32),
}
_NCSNPP = _SONG | {
    "no_gradient": STILL | FIXED,
    "departures": (
        "The authors divide the output by sigma, so that it is the score; here that is the prediction's part: "
        "with prediction=noise the network is theirs but for the sign.",
        "The authors' images go from 0 to 1 and the network doubles them and takes 1 away; here they come as -1 to 1, "
        "so that the process has twice the noise levels: process.smallest=0.02 and process.largest=100.",
        "The network is told 999 t and computes log sigma from it, for sigma from 0.01 to 50; for another ratio of the "
        "two, time_scale is its logarithm / 999.",
    ),
}
_DDPMPP = _SONG | {"no_gradient": STILL}


@register("ncsnpp-cifar10", parameters=62_758_915, **_NCSNPP)
def ncsnpp_cifar10() -> NCSNpp:
    """NCSN++ for CIFAR-10 and continuous noise levels of the variance exploding SDE; four blocks a level."""
    return NCSNpp(**_LOG_SIGMA)


@register("ncsnpp-deep-cifar10", parameters=107_587_075, **_NCSNPP)
def ncsnpp_deep_cifar10() -> NCSNpp:
    """NCSN++ with eight blocks a level."""
    return NCSNpp(units=8, **_LOG_SIGMA)


@register("ddpmpp-cifar10", parameters=61_804_419, **_DDPMPP)
def ddpmpp_cifar10() -> NCSNpp:
    """DDPM++ for CIFAR-10 and the continuous variance preserving SDE; four blocks a level."""
    return NCSNpp(embedding="sinusoidal", fir=(1.0, 1.0), input_pyramid="none")


@register("ddpmpp-deep-cifar10", parameters=106_632_579, **_DDPMPP)
def ddpmpp_deep_cifar10() -> NCSNpp:
    """DDPM++ with eight blocks a level."""
    return NCSNpp(units=8, embedding="sinusoidal", fir=(1.0, 1.0), input_pyramid="none")
