"""AlexNet in its one-tower form (Krizhevsky 2014, 1404.5997) and VGG (Simonyan & Zisserman 2015, 1409.1556).

Both are convolutions with ReLU and max-pooling, then two fully connected layers with dropout and a linear output.
AlexNet has five convolutions of 11 x 11 to 3 x 3 pixels, overlapping pooling (3 x 3, stride 2), and dropout in front of
each fully connected layer; VGG has 3 x 3 convolutions only, pooling of 2 x 2, and dropout after.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import images
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import Norm
from arch_jax.layers.norms import BatchNorm
from arch_jax.layers.vision.convolution import MaxPool
from arch_jax.layers.vision.convolution_norm import ConvolutionNorm
from arch_jax.ops.convolution.pooling import adaptive_average_pool
from arch_jax.ranges import PartialShare
from arch_jax.registry import Paper, register

ALEXNET = Paper("One Weird Trick for Parallelizing Convolutional Neural Networks", "Krizhevsky", 2014, "1404.5997")
VGG_PAPER = Paper(
    "Very Deep Convolutional Networks for Large-Scale Image Recognition", "Simonyan & Zisserman", 2015, "1409.1556"
)


class Classifier(nn.Module):
    """Two fully connected layers with ReLU and dropout, and a linear output.

    Attributes:
      classes: number of classes.
      hidden: width of the two layers.
      dropout: dropout rate.
      before: whether dropout applies to each layer's inputs, as in AlexNet, or to its outputs, as in VGG.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    classes: int
    hidden: int = 4096
    dropout: float = 0.5
    before: bool = False
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        dropped = nn.Dropout(self.dropout, deterministic=not train)
        x = x.reshape(len(x), -1)
        for number in (1, 2):
            x = dropped(x) if self.before else x
            x = nn.relu(Dense(self.hidden, initial_std=0.01, **dtypes, name=f"hidden_{number}")(x))
            x = x if self.before else dropped(x)
        return Dense(self.classes, initial_std=0.01, **dtypes, name="logits")(x)


@component("alexnet", kind="model")
class AlexNet(nn.Module):
    """AlexNet in one tower on images, "batch height width channels", 224 x 224 as published.

    Attributes:
      classes: number of classes.
      widths: channels of the five convolutions.
      hidden: width of the fully connected layers.
      dropout: dropout rate in front of the fully connected layers.
      grid: resolution to which the last maps are average-pooled.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    classes: int = 1000
    widths: tuple[int, ...] = (64, 192, 384, 256, 256)
    hidden: int = 4096
    dropout: PartialShare = 0.5
    grid: int = 6
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if len(self.widths) != 5:
            raise UsageError(
                f"widths has {len(self.widths)} entries; expected one for each of AlexNet's 5 convolutions"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of each class.

        Raises:
          UsageError: images of fewer than 63 pixels on a side, too small for the last pooling.
        """
        self.check(images.shape[1:])
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        x = images
        for number, (width, size) in enumerate(zip(self.widths, (11, 5, 3, 3, 3))):
            stride, padding = (4, 2) if number == 0 else (1, None)
            layer = ConvolutionNorm(
                width, size, stride, padding, normalise=None, **dtypes, name=f"convolution_{number}"
            )
            x = layer(x, train)
            if number in (0, 1, 4):
                x = MaxPool(3, 2)(x)
        x = adaptive_average_pool(x, self.grid)
        return Classifier(self.classes, self.hidden, self.dropout, before=True, **dtypes, name="classifier")(x, train)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses images that are too small.

        Raises:
          UsageError: `shape` ("height width channels") has a side below 63.
        """
        if min(shape[:2]) < 63:
            raise UsageError(f"the images have {shape[0]} x {shape[1]} pixels; AlexNet expects 63 or more on a side")


@component("vgg", kind="model")
class VGG(nn.Module):
    """VGG on images, "batch height width channels", 224 x 224 as published.

    Attributes:
      classes: number of classes.
      blocks: convolutions in each of the stages; each stage ends in pooling.
      widths: channels of each stage.
      head: "hidden" for two fully connected layers, or "linear" for the output alone, as on CIFAR.
      hidden: width of the fully connected layers.
      dropout: dropout rate after the fully connected layers.
      grid: resolution to which the last maps are average-pooled; 7 leaves those of 224 x 224 pixels as they are.
      norm: between each convolution and its ReLU, or None.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    classes: int = 1000
    blocks: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    head: Literal["hidden", "linear"] = "hidden"
    hidden: int = 4096
    dropout: PartialShare = 0.5
    grid: int = 7
    norm: Norm | None = None
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.widths):
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
          UsageError: images too small for the last pooling.
        """
        self.check(images.shape[1:])
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        x = images
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths)):
            for place in range(count):
                name = f"stage_{stage}_convolution_{place}"
                x = ConvolutionNorm(width, normalise=self.norm, bias=True, **dtypes, name=name)(x, train)
            x = MaxPool(2)(x)
        x = adaptive_average_pool(x, self.grid)
        if self.head == "linear":
            return Dense(self.classes, initial_std=0.01, **dtypes, name="logits")(x.reshape(len(x), -1))
        return Classifier(self.classes, self.hidden, self.dropout, **dtypes, name="classifier")(x, train)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses images that are too small.

        Raises:
          UsageError: `shape` ("height width channels") has a side below 2 to the number of stages.
        """
        least = 2 ** len(self.blocks)
        if min(shape[:2]) < least:
            raise UsageError(
                f"the images have {shape[0]} x {shape[1]} pixels; VGG of {len(self.blocks)} stages expects {least} "
                f"or more on a side; set data.resize={least}"
            )


@register(
    "alexnet",
    family="cnn",
    objective="classify",
    paper=ALEXNET,
    inputs=images(224),
    parameters=61_100_840,
    shrink={"classes": 5, "widths": (4, 6, 6, 4, 4), "hidden": 8, "grid": 2, "dropout": 0.1},
    reference="the same network in torch: logits within 1e-5",
    departures=(
        "One tower, as in the paper of 2014; the network of 2012 is divided over two GPUs.",
        "No local response normalisation, as in torchvision; VGG's authors found that it does not improve results "
        "(1409.1556).",
        "The last maps are averaged to 6 x 6, as in torchvision, so that other image sizes pass; at 224 x 224 pixels "
        "nothing changes.",
        "He's initializer for the convolutions; the network of 2012 draws them from N(0, 0.01^2).",
    ),
    difference=1.9e-7,
)
def alexnet() -> AlexNet:
    """AlexNet in one tower, without local response normalisation, as torchvision has it."""
    return AlexNet()


def _vgg(layers: int, blocks: tuple[int, ...], parameters: int, parameters_with_norm: int) -> None:
    """Registers one of configurations A, B, D, E of table 1, without batch norm and with it."""
    facts = {
        "family": "cnn",
        "objective": "classify",
        "paper": VGG_PAPER,
        "inputs": images(224),
        "shrink": {"classes": 5, "blocks": (1, 2), "widths": (4, 6), "hidden": 8, "grid": 2, "dropout": 0.1},
    }

    @register(
        f"vgg-{layers}",
        parameters=parameters,
        architecture="vgg",
        difference=1.7e-7,
        reference="the same network in torch: logits within 1e-5",
        departures=(
            "He's initializer for the convolutions; the paper starts deep networks from trained shallow ones, and its "
            "authors found later that random initial weights do as well.",
            "The last maps are averaged to 7 x 7, as in torchvision, so that other image sizes pass; at 224 x 224 "
            "pixels nothing changes.",
        ),
        **facts,
    )
    def plain() -> VGG:
        return VGG(blocks=blocks)

    @register(
        f"vgg-{layers}-bn",
        parameters=parameters_with_norm,
        architecture="vgg-bn",
        no_gradient={"/convolution/bias$": "batch norm takes away whatever is added to all pixels of a channel"},
        difference=3.5e-7,
        reference="the same network in torch: logits and running statistics within 1e-5",
        departures=(
            "Batch norm after each convolution, as in torchvision; the paper precedes it.",
            "The last maps are averaged to 7 x 7, as in torchvision, so that other image sizes pass; at 224 x 224 "
            "pixels nothing changes.",
        ),
        **facts,
    )
    def with_norm() -> VGG:
        return VGG(blocks=blocks, norm=BatchNorm())

    plain.__doc__ = f"{layers} layers with weights (table 1)."
    with_norm.__doc__ = f"{layers} layers with weights, and batch norm after each convolution."


_vgg(11, (1, 1, 2, 2, 2), 132_863_336, 132_868_840)
_vgg(13, (2, 2, 2, 2, 2), 133_047_848, 133_053_736)
_vgg(16, (2, 2, 3, 3, 3), 138_357_544, 138_365_992)
_vgg(19, (2, 2, 4, 4, 4), 143_667_240, 143_678_248)
