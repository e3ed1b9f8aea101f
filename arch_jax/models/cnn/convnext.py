"""ConvNeXt (Liu et al. 2022, 2201.03545): a convolutional network with the design choices of a Transformer.

    y = x + g * (GELU(LN(D * x) W_1 + b_1) W_2 + b_2)

with D a 7 x 7 depthwise convolution, W_1 four times as wide as x, and g a scale for each channel that starts at 1e-6. A
4 x 4 convolution of stride 4 makes patches; between the four stages a layer norm and a 2 x 2 convolution of stride 2
halve the image (section 2, figure 4).
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import images
from arch_jax.layers.dense import Dense
from arch_jax.layers.facts import CheckpointFacts, facts_field
from arch_jax.layers.mixers.contract import Norm, adapted
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.layers.vision.convolution import Convolution
from arch_jax.layers.vision.stochastic_depth import StochasticDepth, rising
from arch_jax.ops.convolution.pooling import global_average
from arch_jax.ranges import PartialShare
from arch_jax.registry import Paper, register

PAPER = Paper("A ConvNet for the 2020s", "Liu et al.", 2022, "2201.03545")

#: Initializer of all kernels (appendix A.1).
INITIAL = nn.initializers.truncated_normal(0.02)


class ConvNeXtBlock(nn.Module):
    """One block.

    Attributes:
      layer_scale: initial layer scale of the branch; None omits it.
      activation: between the two linear layers.
      normalise: after the depthwise convolution.
      stochastic_depth: probability of dropping the branch of an example in training.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    layer_scale: float | None = 1e-6
    activation: str = "gelu"
    normalise: Norm = LayerNorm(epsilon=1e-6)
    stochastic_depth: float = 0.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        width = x.shape[-1]
        dense = functools.partial(Dense, initial=INITIAL, **dtypes, parent=self)
        y = Convolution(width, 7, groups=None, initial=INITIAL, **dtypes, name="depthwise")(x)
        y = adapted(self.normalise, **dtypes).clone(parent=self, name="norm")(y)
        y = dense(width, name="down")(activation(self.activation)(dense(4 * width, name="up")(y)))
        if self.layer_scale is not None:
            scale = self.param("scale", nn.initializers.constant(self.layer_scale), (width,), self.parameter_dtype)
            y = y * scale.astype(y.dtype)
        return x + StochasticDepth(self.stochastic_depth)(y, train)


@component("convnext", kind="model")
class ConvNeXt(nn.Module):
    """ConvNeXt on images, "batch height width channels".

    Attributes:
      classes: number of classes; None for none, and features "batch channels" instead of logits.
      blocks: in each stage.
      widths: channels of each stage.
      patch: pixels on a side of the first convolution, and its stride.
      layer_scale: initial layer scale of each branch; None omits it.
      activation: between the two linear layers of a block.
      norm: of each block, and between the stages.
      final_norm: in front of the logits.
      stochastic_depth: probability of dropping the last block's branch in training; 0 for the
        first, and in equal steps between.
      dtype: of the computation.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    classes: int | None = 1000
    blocks: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    patch: int = 4
    layer_scale: float | None = 1e-6
    activation: str = "gelu"
    norm: Norm = LayerNorm(epsilon=1e-6)
    final_norm: Norm = LayerNorm(epsilon=1e-6)
    stochastic_depth: PartialShare = 0.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    facts: CheckpointFacts | None = facts_field()

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.widths) or not self.blocks:
            raise UsageError(
                f"blocks has {len(self.blocks)} entries and widths {len(self.widths)}; expected one of each for a stage"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of each class.

        Raises:
          UsageError: images too small for the last stage.
        """
        self.check(images.shape[1:])
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        norm = lambda name, module=self.norm: adapted(module, **dtypes).clone(parent=self, name=name)
        convolution = functools.partial(Convolution, padding=0, initial=INITIAL, **dtypes, parent=self)
        rates = iter(rising(self.stochastic_depth, sum(self.blocks)))
        x = norm("stem_norm")(convolution(self.widths[0], self.patch, self.patch, name="stem")(images))
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths)):
            if stage:
                x = convolution(width, 2, 2, name=f"halving_{stage}")(norm(f"halving_{stage}_norm")(x))
            for place in range(count):
                x = ConvNeXtBlock(
                    self.layer_scale,
                    self.activation,
                    self.norm,
                    next(rates),
                    **dtypes,
                    name=f"stage_{stage}_block_{place}",
                )(x, train)
        x = norm("logits_norm", self.final_norm)(global_average(x))
        return x if self.classes is None else Dense(self.classes, initial=INITIAL, **dtypes, name="logits")(x)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses images that are too small.

        Raises:
          UsageError: `shape` ("height width channels") is too small for the last stage.
        """
        least = self.patch * 2 ** (len(self.blocks) - 1)
        if min(shape[:2]) < least:
            raise UsageError(
                f"the images have {shape[0]} x {shape[1]} pixels; expected {least} or more on a side for "
                f"{len(self.blocks)} stages behind patches of {self.patch}; set data.resize={least}"
            )


def _convnext(size: str, parameters: int, blocks: tuple[int, ...], first: int) -> None:
    """Registers one of the sizes of section 3.1."""

    @register(
        f"convnext-{size}",
        family="cnn",
        objective="classify",
        paper=PAPER,
        inputs=images(224),
        parameters=parameters,
        architecture="convnext",
        shrink={"classes": 5, "blocks": (1, 2), "widths": (4, 8), "layer_scale": 0.5},
        reference="transformers ConvNextForImageClassification: logits within 1e-5",
        departures=(
            "Stochastic depth is off by default, since its rate belongs to the recipe: the paper trains with 0.1 to "
            "0.5, by size.",
        ),
        difference=1.2e-6,
    )
    def build() -> ConvNeXt:
        return ConvNeXt(blocks=blocks, widths=tuple(first * 2**stage for stage in range(4)))

    build.__doc__ = f"{sum(blocks)} blocks, {first} to {8 * first} channels (section 3.1)."


_convnext("tiny", 28_589_128, (3, 3, 9, 3), 96)
_convnext("small", 50_223_688, (3, 3, 27, 3), 96)
_convnext("base", 88_591_464, (3, 3, 27, 3), 128)
_convnext("large", 197_767_336, (3, 3, 27, 3), 192)
