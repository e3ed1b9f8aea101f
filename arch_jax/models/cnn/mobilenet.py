"""MobileNetV2 (Sandler et al. 2018, 1801.04381): inverted residuals with linear bottlenecks, table 2."""

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
from arch_jax.ranges import PartialShare
from arch_jax.registry import Paper, register

PAPER = Paper("MobileNetV2: Inverted Residuals and Linear Bottlenecks", "Sandler et al.", 2018, "1801.04381")


@component("mobilenet_v2", kind="model")
class MobileNetV2(nn.Module):
    """MobileNetV2 on images, "batch height width channels".

    Attributes:
      classes: number of classes; None for none, and features "batch channels" instead of logits.
      multiplier: of all widths; the last one does not shrink below 1,280.
      stages: expansion, channels, blocks and the first block's stride, for each row of table 2.
      stem: channels of the first convolution.
      head: channels of the last convolution.
      divisor: all widths are rounded to a multiple of this.
      padding: of all convolutions of 3 x 3: None for as much on both sides, "same" for TensorFlow's.
      dropout: dropout rate of the pooled features.
      norm: after each convolution.
      dtype: of the computation.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    classes: int | None = 1000
    multiplier: float = 1.0
    stages: tuple[tuple[int, int, int, int], ...] = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    stem: int = 32
    head: int = 1280
    divisor: int = 8
    padding: Padding = None
    dropout: PartialShare = 0.2
    norm: Norm = BatchNorm(epsilon=1e-3, momentum=0.997)
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    facts: CheckpointFacts | None = facts_field()

    def __post_init__(self) -> None:
        if not self.multiplier > 0:
            raise UsageError(f"multiplier is {self.multiplier}; expected a number above 0, such as 0.5")
        super().__post_init__()

    def channels(self, width: int) -> int:
        """A width of table 2 times the multiplier, rounded."""
        return divisible(round(width * self.multiplier), self.divisor)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of each class."""
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        shared = dtypes | {"normalise": self.norm, "activation": "relu6"}
        x = ConvolutionNorm(self.channels(self.stem), 3, 2, self.padding, **shared, name="stem")(images, train)
        for stage, (expansion, channels, count, stride) in enumerate(self.stages):
            for place in range(count):
                x = InvertedResidual(
                    self.channels(channels),
                    expansion,
                    stride=1 if place else stride,
                    padding=self.padding,
                    **shared,
                    name=f"stage_{stage}_block_{place}",
                )(x, train)
        last = self.channels(self.head) if self.multiplier > 1 else self.head
        x = global_average(ConvolutionNorm(last, 1, **shared, name="head")(x, train))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x if self.classes is None else Dense(self.classes, initial_std=0.01, **dtypes, name="logits")(x)


@register(
    "mobilenet-v2",
    family="cnn",
    objective="classify",
    paper=PAPER,
    inputs=images(224),
    parameters=3_504_872,
    shrink={
        "classes": 5,
        "stem": 4,
        "head": 12,
        "divisor": 2,
        "stages": ((1, 4, 1, 1), (2, 6, 2, 2)),
        "dropout": 0.0,
    },
    no_gradient={"project/norm/bias$": "what is added to all pixels of a channel is taken away by the next batch norm"},
    reference="transformers MobileNetV2ForImageClassification: logits within 1e-12 in float64",
    departures=(
        "Convolutions of stride 2 are padded alike on both sides, as in PyTorch's libraries; the authors' TensorFlow "
        "code pads one side more (padding=same).",
        "Dropout of 0.2 before the logits, as in the libraries; the paper uses dropout and gives no rate.",
    ),
    difference=2.8e-14,
)
def mobilenet_v2() -> MobileNetV2:
    """Table 2, width 1: 3.4 million parameters in the paper's table 4."""
    return MobileNetV2()
