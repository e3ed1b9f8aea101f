"""DenseNet (Huang et al. 2017, 1608.06993): each layer sees the outputs of all layers before it.

    x_l = H_l([x_0, x_1, ..., x_{l-1}])                                        (equation 2)

with H_l = batch norm, ReLU, 3 x 3 convolution of k features, or in a bottleneck (DenseNet-B) batch norm, ReLU, 1 x 1
convolution of 4k features in front of it. Between dense blocks a transition, batch norm, ReLU and a 1 x 1 convolution
that keeps a fraction of the channels (DenseNet-C), then 2 x 2 average pooling, halves the resolution.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import images
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import Norm, adapted
from arch_jax.layers.norms import BatchNorm
from arch_jax.layers.vision.convolution import AveragePool, Convolution, MaxPool
from arch_jax.ops.convolution.pooling import global_average
from arch_jax.ranges import PartialShare
from arch_jax.registry import Paper, register

PAPER = Paper("Densely Connected Convolutional Networks", "Huang et al.", 2017, "1608.06993")


class NormConvolution(nn.Module):
    """K * relu(norm(x)): the order of He et al. (2016, 1603.05027), without bias.

    Attributes:
      features: channels of the output.
      size: pixels of the kernel on a side.
      norm: in front.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    features: int
    size: int
    norm: Norm = BatchNorm()
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch height width features"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        x = nn.relu(adapted(self.norm, **dtypes).clone(parent=self, name="norm")(x, train))
        return Convolution(self.features, self.size, bias=False, **dtypes, name="convolution")(x)


@component("densenet", kind="model")
class DenseNet(nn.Module):
    """DenseNet on images, "batch height width channels".

    Attributes:
      classes: number of classes.
      growth: k, the channels that each layer adds.
      blocks: layers in each dense block.
      stem: channels of the first convolution.
      form: the first layers: "imagenet" (7 x 7 of stride 2, batch norm, ReLU, pooling of stride 2) or "cifar" (3 x 3).
      bottleneck: ratio of the 1 x 1 convolutions' channels to k; None omits them.
      compression: fraction of the channels that a transition keeps, above 0 and at most 1.
      dropout: dropout rate of each layer's outputs.
      norm: in front of each convolution.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    classes: int = 1000
    growth: int = 32
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    stem: int = 64
    form: Literal["imagenet", "cifar"] = "imagenet"
    bottleneck: int | None = 4
    compression: float = 0.5
    dropout: PartialShare = 0.0
    norm: Norm = BatchNorm()
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if not 0 < self.compression <= 1:
            raise UsageError(
                f"compression is {self.compression}; expected a fraction above 0 and at most 1, such as 0.5"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of each class."""
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        layer = lambda features, size, name: NormConvolution(features, size, self.norm, **dtypes, name=name)
        normed = lambda x, name: nn.relu(adapted(self.norm, **dtypes).clone(parent=self, name=name)(x, train))
        dropped = nn.Dropout(self.dropout, deterministic=not train)
        if self.form == "imagenet":
            x = Convolution(self.stem, 7, 2, bias=False, **dtypes, name="stem")(images)
            x = MaxPool(3, 2, padding=1)(normed(x, "stem_norm"))
        else:
            x = Convolution(self.stem, 3, bias=False, **dtypes, name="stem")(images)
        for number, count in enumerate(self.blocks):
            if number:
                kept = int(x.shape[-1] * self.compression)
                x = AveragePool(2)(layer(kept, 1, f"transition_{number}")(x, train))
            for place in range(count):
                new, name = x, f"block_{number}_layer_{place}"
                if self.bottleneck is not None:
                    new = layer(self.bottleneck * self.growth, 1, f"{name}_bottleneck")(new, train)
                new = layer(self.growth, 3, name)(new, train)
                x = jnp.concatenate([x, dropped(new)], axis=-1)
        x = global_average(normed(x, "final_norm"))
        return Dense(self.classes, initial_std=0.01, **dtypes, name="logits")(x)


def _imagenet(layers: int, growth: int, stem: int, blocks: tuple[int, ...], parameters: int) -> None:
    """Registers one of the networks of table 1."""

    @register(
        f"densenet-{layers}",
        family="cnn",
        objective="classify",
        paper=PAPER,
        inputs=images(224),
        parameters=parameters,
        architecture="densenet",
        shrink={"classes": 5, "growth": 4, "stem": 8, "blocks": (1, 2)},
        reference="the same network in torch: logits and running statistics within 1e-5",
        difference=5.5e-7,
    )
    def build() -> DenseNet:
        return DenseNet(growth=growth, stem=stem, blocks=blocks)

    build.__doc__ = f"DenseNet-BC of {layers} layers for ImageNet (table 1), k = {growth}."


_imagenet(121, 32, 64, (6, 12, 24, 16), 7_978_856)
_imagenet(161, 48, 96, (6, 12, 36, 24), 28_681_000)
_imagenet(169, 32, 64, (6, 12, 32, 32), 14_149_480)
_imagenet(201, 32, 64, (6, 12, 48, 32), 20_013_928)


@register(
    "densenet-bc-100-12",
    family="cnn",
    objective="classify",
    paper=PAPER,
    inputs=images(32),
    parameters=769_162,
    architecture="densenet-cifar",
    shrink={"classes": 5, "growth": 4, "stem": 8, "blocks": (1, 2)},
    reference="the same network in torch: logits and running statistics within 1e-5",
    departures=("Dropout is off by default; the paper uses 0.2 where there is no data augmentation.",),
    difference=5.5e-7,
)
def densenet_bc_100_12() -> DenseNet:
    """DenseNet-BC of 100 layers for CIFAR-10, k = 12: 0.8 million parameters in table 2."""
    return DenseNet(classes=10, growth=12, stem=24, form="cifar", blocks=(16, 16, 16))
