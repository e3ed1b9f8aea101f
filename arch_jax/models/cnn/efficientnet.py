"""EfficientNet (Tan & Le 2019, 1905.11946): depth, width and resolution of one small network, scaled together.

B0 (table 1) is inverted residuals with squeeze and excitation. Equation 3 scales depth by a^p, width by b^p and
resolution by c^p, with a = 1.2, b = 1.1 and c = 1.15: a b^2 c^2 is about 2, so that each step of p doubles the
work. B1 to B7 have the factors of the released networks, which are near that (B7: depth 3.1, a^6.2) and not exactly it;
blocks and channels of every stage follow from two factors.

EfficientNet-Lite, of the same authors' code, leaves squeeze and excitation out and has ReLU6 in place of SiLU, so that
it can be quantised; its first and last layers keep B0's size.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import images
from arch_jax.layers.dense import Dense
from arch_jax.layers.facts import CheckpointFacts, facts_field
from arch_jax.layers.mixers.contract import Norm
from arch_jax.layers.norms import BatchNorm
from arch_jax.layers.vision.convolution_norm import ConvolutionNorm
from arch_jax.layers.vision.inverted_residual import InvertedResidual, divisible
from arch_jax.ops.convolution.dense import Padding
from arch_jax.ops.convolution.pooling import global_average
from arch_jax.ranges import PartialShare, Share
from arch_jax.registry import Paper, register

PAPER = Paper(
    "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", "Tan & Le", 2019, "1905.11946"
)


@component("efficientnet", kind="model")
class EfficientNet(nn.Module):
    """EfficientNet on images, "batch height width channels".

    Attributes:
      classes: number of classes; None for none, and features "batch channels" instead of logits.
      depth_factor: of the blocks in each stage, rounded up.
      width_factor: of all channels, rounded to multiples of `divisor`.
      stages: expansion, channels, blocks, the first block's stride and the kernel's size, for each row of table 1.
      stem: channels of the first convolution.
      head: channels of the last convolution.
      divisor: all widths are rounded to a multiple of this.
      padding: of all convolutions: "same" for TensorFlow's, None for as much on both sides.
      squeeze: bottleneck of squeeze and excitation as a fraction of a block's channels; None omits it.
      activation: after each convolution but a block's last.
      fixed_ends: whether the first and the last convolution keep their widths, and the first and the last stage their
        blocks, whatever the factors are.
      dropout: dropout rate of the pooled features.
      stochastic_depth: probability of dropping the last block's branch in training; 0 for the
        first, and in equal steps between.
      norm: after each convolution.
      dtype: of the computation.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    classes: int | None = 1000
    depth_factor: float = 1.0
    width_factor: float = 1.0
    stages: tuple[tuple[int, int, int, int, int], ...] = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    stem: int = 32
    head: int = 1280
    divisor: int = 8
    padding: Padding = "same"
    squeeze: Share | None = 0.25
    activation: str = "silu"
    fixed_ends: bool = False
    dropout: PartialShare = 0.2
    stochastic_depth: PartialShare = 0.2
    norm: Norm = BatchNorm(epsilon=1e-3, momentum=0.99)
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    facts: CheckpointFacts | None = facts_field()

    def __post_init__(self) -> None:
        if not (self.depth_factor > 0 and self.width_factor > 0):
            raise UsageError(
                f"depth_factor is {self.depth_factor} and width_factor {self.width_factor}; expected numbers above 0"
            )
        super().__post_init__()

    @property
    def counts(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        scaled = [math.ceil(self.depth_factor * count) for _, _, count, _, _ in self.stages]
        if self.fixed_ends:
            scaled[0], scaled[-1] = self.stages[0][2], self.stages[-1][2]
        return tuple(scaled)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of each class."""
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        shared = dtypes | {"normalise": self.norm, "activation": self.activation}
        width = lambda channels: divisible(channels * self.width_factor, self.divisor)
        end = lambda channels: channels if self.fixed_ends else width(channels)
        x = ConvolutionNorm(end(self.stem), 3, 2, self.padding, **shared, name="stem")(images, train)
        number = 0
        for stage, (expansion, channels, _, stride, size) in enumerate(self.stages):
            for place in range(self.counts[stage]):
                x = InvertedResidual(
                    width(channels),
                    expansion,
                    size,
                    1 if place else stride,
                    self.padding,
                    squeeze=self.squeeze,
                    # The reference divides by the number of blocks, so that the last one does not reach the rate.
                    stochastic_depth=self.stochastic_depth * number / sum(self.counts),
                    **shared,
                    name=f"stage_{stage}_block_{place}",
                )(x, train)
                number += 1
        x = global_average(ConvolutionNorm(end(self.head), 1, **shared, name="head")(x, train))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x if self.classes is None else Dense(self.classes, initial_std=0.01, **dtypes, name="logits")(x)


_DEPARTURES = (
    "B1 to B7 have the depth and width factors of the released networks, which are near a^p and b^p but not equal to "
    "them.",
    "The rate of stochastic depth rises by the number of blocks and not by that less 1, as in the authors' code, so "
    "that the last block does not reach it.",
)
_LITE_DEPARTURES = (
    "Published in the authors' repository only, not in the paper: no squeeze and excitation, ReLU6 for SiLU, and first "
    "and last layers of B0's size, so that it can be quantised.",
    *_DEPARTURES[1:],
)


def _efficientnet(
    name: str, parameters: int, depth: float, width: float, pixels: int, dropout: float, **settings: Any
) -> None:
    """Registers one network with the factors of the released one."""
    reference, difference = "transformers EfficientNetForImageClassification: logits within 1e-5", 1e-6
    if settings:
        reference, difference = "efficientnet_lite_pytorch: logits within 1e-5, on photographs", 5.7e-6

    @register(
        f"efficientnet-{name}",
        family="cnn",
        objective="classify",
        paper=PAPER,
        inputs=images(pixels),
        parameters=parameters,
        architecture="efficientnet",
        shrink={
            "classes": 5,
            "stem": 4,
            "head": 12,
            "divisor": 2,
            "stages": ((1, 4, 1, 1, 3), (2, 6, 2, 2, 5)),
            "dropout": 0.0,
            "stochastic_depth": 0.0,
        },
        no_gradient={
            "project/norm/bias$": "what is added to all pixels of a channel is taken away by the next batch norm"
        },
        reference=reference,
        departures=_LITE_DEPARTURES if settings else _DEPARTURES,
        difference=difference,
    )
    def build() -> EfficientNet:
        return EfficientNet(depth_factor=depth, width_factor=width, dropout=dropout, **settings)

    build.__doc__ = f"{depth} times B0's depth and {width} times its width, for images of {pixels} x {pixels} pixels."


_efficientnet("b0", 5_288_548, 1.0, 1.0, 224, 0.2)
_efficientnet("b1", 7_794_184, 1.1, 1.0, 240, 0.2)
_efficientnet("b2", 9_109_994, 1.2, 1.1, 260, 0.3)
_efficientnet("b3", 12_233_232, 1.4, 1.2, 300, 0.3)
_efficientnet("b4", 19_341_616, 1.8, 1.4, 380, 0.4)
_efficientnet("b5", 30_389_784, 2.2, 1.6, 456, 0.4)
_efficientnet("b6", 43_040_704, 2.6, 1.8, 528, 0.5)
_efficientnet("b7", 66_347_960, 3.1, 2.0, 600, 0.5)

# Lite0 was compared with the weights of ImageNet, the others with drawn ones.
_LITE = {"squeeze": None, "activation": "relu6", "fixed_ends": True}
_efficientnet("lite0", 4_652_008, 1.0, 1.0, 224, 0.2, **_LITE)
_efficientnet("lite1", 5_416_680, 1.1, 1.0, 240, 0.2, **_LITE)
_efficientnet("lite2", 6_092_072, 1.2, 1.1, 260, 0.3, **_LITE)
_efficientnet("lite3", 8_197_096, 1.4, 1.2, 280, 0.3, **_LITE)
_efficientnet("lite4", 13_006_568, 1.8, 1.4, 300, 0.3, **_LITE)
