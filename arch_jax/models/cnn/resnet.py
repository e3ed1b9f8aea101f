"""ResNet (He et al. 2016, 1512.03385) and its plain baselines.

A residual block adds the output of its layers to its input (equations 1 and 2):

    y = f(F(x) + s(x))        plain: y = f(F(x))

with f = ReLU (or another activation), and F two 3 x 3 convolutions (figure 5, left) or the bottleneck 1 x 1, 3 x 3, 1 x
1 whose outer sides are four times as wide (right), batch norm after each. s is the identity where the shapes agree.
Elsewhere it is option A of section 4.1, every second pixel with zeros for the new channels, or option B, a 1 x 1
convolution of stride 2.

On ImageNet (table 1) a 7 x 7 convolution and a pooling, both of stride 2, come first, then four stages; on CIFAR
(section 4.2) one 3 x 3 convolution and three stages of n blocks, 6n + 2 layers in all.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import images
from arch_jax.layers.dense import Dense
from arch_jax.layers.facts import CheckpointFacts, facts_field
from arch_jax.layers.mixers.contract import Norm, adapted
from arch_jax.layers.norms import BatchNorm
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.layers.vision.convolution import MaxPool
from arch_jax.layers.vision.convolution_norm import ConvolutionNorm
from arch_jax.ops.convolution.pooling import global_average
from arch_jax.registry import Paper, register

PAPER = Paper("Deep Residual Learning for Image Recognition", "He et al.", 2016, "1512.03385")

Shortcut = Literal["projection", "padding", "none"]

#: Ratio of a bottleneck's output channels to those of its 3 x 3 convolution.
EXPANSION = 4


class Residual(nn.Module):
    """One block of a `ResNet`, whose fields it shares.

    Attributes:
      width: channels of its 3 x 3 convolutions.
      stride: of the block.
      bottleneck: whether it is a bottleneck.
      shortcut: the shortcut where the shapes differ; "none" adds nothing anywhere.
      stride_first: whether a bottleneck's stride is that of its first convolution.
      zero_scale: whether the last norm's scale starts at 0.
      norm: after each convolution.
      activation: f; the layers before it keep ReLU.
      features: channels that it gives; None is `width`, four times as many of a bottleneck.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    width: int
    stride: int = 1
    bottleneck: bool = False
    shortcut: Shortcut = "projection"
    stride_first: bool = False
    zero_scale: bool = False
    norm: Norm = BatchNorm()
    activation: str = "relu"
    features: int | None = None
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch new_height new_width features"]:
        shared = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        last = adapted(self.norm, initial_scale=0.0) if self.zero_scale else self.norm
        f = activation(self.activation)
        features = self.features or self.width * (EXPANSION if self.bottleneck else 1)
        layer = lambda features, size, stride, name, norm=self.norm, f="relu": ConvolutionNorm(
            features, size, stride, normalise=norm, activation=f, **shared, name=name
        )
        if self.bottleneck:
            first, second = (self.stride, 1) if self.stride_first else (1, self.stride)
            y = layer(self.width, 1, first, "convolution_1")(x, train)
            y = layer(self.width, 3, second, "convolution_2")(y, train)
            y = layer(features, 1, 1, "convolution_3", last, None)(y, train)
        else:
            y = layer(features, 3, self.stride, "convolution_1")(x, train)
            y = layer(features, 3, 1, "convolution_2", last, None)(y, train)
        if self.shortcut == "none":
            return f(y)
        if x.shape != y.shape and self.shortcut == "projection":
            x = layer(features, 1, self.stride, "shortcut", f=None)(x, train)
        elif x.shape != y.shape:
            missing = features - x.shape[-1]
            x = x[:, :: self.stride, :: self.stride]
            # Half of the zeros before and half after, as the reference implementations for CIFAR have them.
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
        return f(y + x.astype(y.dtype))


@component("resnet", kind="model")
class ResNet(nn.Module):
    """Residual or plain network on images, "batch height width channels".

    Attributes:
      classes: number of classes; None for none, and features "batch channels" instead of logits.
      blocks: in each stage; a stage's first block has stride 2, but the first stage's (see `first_stride`).
      width: channels of the 3 x 3 convolutions of the first stage; each further stage has twice as many.
      bottleneck: whether blocks are bottlenecks, or two 3 x 3 convolutions.
      stem: the first layers: "imagenet" (7 x 7 of stride 2, pooling of stride 2) or "cifar" (3 x 3 of stride 1).
      shortcut: the shortcut of a block that changes the shape: a "projection" (option B) or "padding" (option A); with
        "none" nothing is added anywhere, which is the plain network.
      stride_first: whether the stride of a bottleneck is that of its first convolution, as published, or of its 3 x 3
        convolution, which is usual today and half a percent better.
      zero_scale: whether the scale of each block's last norm starts at 0, so that every block starts as f(s(x)) (Goyal
        et al. 2017, 1706.02677, section 5.1).
      norm: after each convolution.
      activation: f of a block and of the stem, by name; inside a block it is ReLU, as in transformers.
      first_stride: stride of the first stage's first block.
      widths: channels that each stage gives; None doubles them from stage to stage.
      dtype: of the computation.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    classes: int | None = 1000
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    bottleneck: bool = False
    stem: Literal["imagenet", "cifar"] = "imagenet"
    shortcut: Shortcut = "projection"
    stride_first: bool = False
    zero_scale: bool = False
    norm: Norm = BatchNorm()
    activation: str = "relu"
    first_stride: int = 1
    widths: tuple[int, ...] | None = None
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    facts: CheckpointFacts | None = facts_field()

    def __post_init__(self) -> None:
        if not self.blocks or min(self.blocks) < 1:
            raise UsageError(f"blocks is {self.blocks}; expected at least one in each stage, such as (2, 2, 2, 2)")
        if self.first_stride < 1:
            raise UsageError(f"first_stride is {self.first_stride}; expected at least 1")
        least = EXPANSION if self.bottleneck else 1
        if self.widths is not None and (len(self.widths) != len(self.blocks) or min(self.widths) < least):
            raise UsageError(
                f"widths is {self.widths}; expected at least {least} for each of the {len(self.blocks)} stages, or none"
            )
        super().__post_init__()

    @property
    def features(self) -> tuple[int, ...]:
        """Channels that each stage gives."""
        first = self.width * (EXPANSION if self.bottleneck else 1)
        return self.widths or tuple(first * 2**stage for stage in range(len(self.blocks)))

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of each class."""
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        stem = {"normalise": self.norm, "activation": self.activation}
        x = ConvolutionNorm(self.width, size, stride, **stem, **dtypes, name="stem")(images, train)
        if self.stem == "imagenet":
            x = MaxPool(3, 2, padding=1)(x)
        for stage, count in enumerate(self.blocks):
            for place in range(count):
                x = Residual(
                    width=self.features[stage] // (EXPANSION if self.bottleneck else 1),
                    features=self.features[stage],
                    stride=1 if place else 2 if stage else self.first_stride,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    stride_first=self.stride_first,
                    zero_scale=self.zero_scale,
                    norm=self.norm,
                    activation=self.activation,
                    **dtypes,
                    name=f"stage_{stage}_block_{place}",
                )(x, train)
        x = global_average(x)
        return x if self.classes is None else Dense(self.classes, initial_std=0.01, **dtypes, name="logits")(x)


_BASIC_DEPARTURES = (
    "Shortcuts that change the shape are projections (option B), as in the libraries; the 18- and 34-layer networks of "
    "table 2 pad with zeros (option A; shortcut=padding).",
)
_BOTTLENECK_DEPARTURES = (
    "The stride of a bottleneck is in its 3 x 3 convolution, as in the libraries, which is about half a percent "
    "better; the paper has it in the first 1 x 1 (stride_first=true).",
)
_CIFAR_DEPARTURES = (
    "Zeros for new channels are put half before and half after the others, as in the usual implementations for CIFAR; "
    "the paper does not say where.",
)


def _imagenet(layers: int, parameters: int, blocks: tuple[int, ...], **settings: bool) -> None:
    """Registers one of the networks for ImageNet."""

    @register(
        f"resnet-{layers}",
        family="cnn",
        objective="classify",
        paper=PAPER,
        inputs=images(224),
        parameters=parameters,
        architecture="resnet-bottleneck" if settings else "resnet-basic",
        shrink={"classes": 5, "blocks": (1, 2), "width": 4},
        reference="transformers ResNetForImageClassification: logits and running statistics within 1e-5",
        departures=_BOTTLENECK_DEPARTURES if settings else _BASIC_DEPARTURES,
        difference=1.4e-6,
    )
    def build() -> ResNet:
        return ResNet(blocks=blocks, **settings)

    build.__doc__ = f"{layers} layers for ImageNet (table 1), the stride in the 3 x 3 convolutions."


_imagenet(18, 11_689_512, (2, 2, 2, 2))
_imagenet(34, 21_797_672, (3, 4, 6, 3))
_imagenet(50, 25_557_032, (3, 4, 6, 3), bottleneck=True)
_imagenet(101, 44_549_160, (3, 4, 23, 3), bottleneck=True)
_imagenet(152, 60_192_808, (3, 8, 36, 3), bottleneck=True)


def _cifar(layers: int, parameters: int | None, residual: bool) -> None:
    """Registers one of the networks for CIFAR, of 6n + 2 layers."""

    @register(
        f"resnet-cifar-{layers}" if residual else f"plain-cifar-{layers}",
        family="cnn",
        objective="classify",
        paper=PAPER,
        inputs=images(32),
        parameters=parameters,
        architecture="resnet-cifar",
        shrink={"classes": 5, "blocks": (1, 2), "width": 4},
        reference="the same network in torch: logits and running statistics within 1e-5",
        departures=_CIFAR_DEPARTURES if residual else (),
        difference=5e-7,
    )
    def build() -> ResNet:
        blocks = (((layers - 2) // 6),) * 3
        shortcut = "padding" if residual else "none"
        return ResNet(classes=10, blocks=blocks, width=16, stem="cifar", shortcut=shortcut)

    what = "shortcuts without parameters (option A)" if residual else "no shortcuts"
    build.__doc__ = f"{layers} layers for CIFAR-10 (section 4.2), with {what}."


for _layers, _parameters in ((20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)):
    _cifar(_layers, _parameters, residual=True)
    if _layers < 110:
        _cifar(_layers, _parameters, residual=False)
