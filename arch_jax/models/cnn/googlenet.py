"""GoogLeNet (Szegedy et al. 2015, 1409.4842): Inception modules, and auxiliary classifiers for training.

Each module applies several kernel sizes to its input and concatenates the results (figure 2b), in this order:

    [1 x 1 | 1 x 1, then 3 x 3 | 1 x 1, then 5 x 5 | 3 x 3 max-pooling, then 1 x 1]

Two classifiers on intermediate maps are trained with it, the sum of their losses weighted by 0.3, and are discarded
afterwards (section 5). The reference, torchvision's, has batch norm after each convolution in place of local response
normalisation, and 3 x 3 where the paper has 5 x 5 (its authors' slip, kept for its weights); so have the registered
ones.
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
from arch_jax.layers.sowing import sow_output
from arch_jax.layers.vision.convolution import MaxPool
from arch_jax.layers.vision.convolution_norm import ConvolutionNorm
from arch_jax.ops.convolution.pooling import adaptive_average_pool, global_average
from arch_jax.ranges import PartialShare
from arch_jax.registry import Paper, register

PAPER = Paper("Going Deeper with Convolutions", "Szegedy et al.", 2015, "1409.4842")

#: Table 1: stage -> its modules, each (1 x 1, 3 x 3 reduced, 3 x 3, 5 x 5 reduced, 5 x 5, pooling projected).
STAGES: dict[int, tuple[tuple[int, ...], ...]] = {
    3: ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    4: (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    5: ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
}

#: Behind these modules are the auxiliary classifiers (section 5: "4a" and "4d").
AUXILIARY = ("4a", "4d")

_INITIAL = nn.initializers.normal(0.01)


@component("googlenet", kind="model")
class GoogLeNet(nn.Module):
    """GoogLeNet on images, "batch height width channels", 224 x 224 as published.

    Attributes:
      classes: number of classes.
      width: factor on the published channels of each convolution.
      modules: the number of modules in each of table 1's stages 3, 4 and 5, from the first on.
      auxiliary: whether there are auxiliary classifiers; their logits are sown as outputs.
      largest: pixels of the largest kernels on a side: 5 in the paper, 3 in the reference.
      dropout: dropout rate of the averaged channels.
      auxiliary_dropout: dropout rate of the auxiliary classifiers.
      auxiliary_hidden: width of their hidden layer.
      normalise: after each convolution; None omits it, for biases.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    classes: int = 1000
    width: float = 1.0
    modules: tuple[int, int, int] = (2, 5, 2)
    auxiliary: bool = False
    largest: Literal[3, 5] = 3
    dropout: PartialShare = 0.2
    auxiliary_dropout: PartialShare = 0.7
    auxiliary_hidden: int = 1024
    normalise: Norm | None = BatchNorm(epsilon=1e-3)
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise UsageError(f"width is {self.width}; expected a factor above 0, such as 1.0")
        most = tuple(map(len, STAGES.values()))
        if len(self.modules) != 3 or not all(1 <= n <= limit for n, limit in zip(self.modules, most)):
            raise UsageError(f"modules is {tuple(self.modules)}; expected 1 to 2, 1 to 5 and 1 to 2, such as {most}")
        if self.largest not in (3, 5):
            raise UsageError(f"largest is {self.largest}; expected 5 as in the paper, or 3 as in the reference")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of each class; those of the auxiliary classifiers are sown as outputs.

        Raises:
          UsageError: images of fewer than 15 pixels on a side.
        """
        self.check(images.shape[1:])
        x = self._convolution(images, 64, 7, "stem", train, stride=2)
        x = MaxPool(3, 2, ceil=True)(x)
        x = self._convolution(x, 64, 1, "reduce", train)
        x = self._convolution(x, 192, 3, "convolution", train)
        for (stage, modules), count in zip(STAGES.items(), self.modules):
            x = MaxPool(2 if stage == 5 else 3, 2, ceil=True)(x)
            for letter, channels in zip("abcde", modules[:count]):
                x = self._inception(x, channels, f"{stage}{letter}", train)
                if self.auxiliary and f"{stage}{letter}" in AUXILIARY:
                    name = f"auxiliary_{stage}{letter}"
                    sow_output(self, name, self._auxiliary(x, name, train))
        x = nn.Dropout(self.dropout, deterministic=not train)(global_average(x))
        return self._dense(x, self.classes, "logits")

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses images that are too small.

        Raises:
          UsageError: `shape` ("height width channels") has a side below 15.
        """
        if min(shape[:2]) < 15:
            raise UsageError(f"the images have {shape[0]} x {shape[1]} pixels; GoogLeNet expects 15 or more on a side")

    def _inception(self, x: Array, channels: tuple[int, ...], name: str, train: bool) -> Array:
        one, reduced, three, least, five, pooled = channels
        at = f"inception_{name}"
        branches = [
            self._convolution(x, one, 1, f"{at}_one", train),
            self._convolution(
                self._convolution(x, reduced, 1, f"{at}_three_reduced", train), three, 3, f"{at}_three", train
            ),
            self._convolution(
                self._convolution(x, least, 1, f"{at}_five_reduced", train), five, self.largest, f"{at}_five", train
            ),
            self._convolution(MaxPool(3, 1, padding=1)(x), pooled, 1, f"{at}_pooled", train),
        ]
        return jnp.concatenate(branches, axis=-1)

    def _auxiliary(self, x: Array, name: str, train: bool) -> Array:
        x = self._convolution(adaptive_average_pool(x, 4), 128, 1, f"{name}_convolution", train)
        x = nn.relu(self._dense(x.reshape(len(x), -1), self.auxiliary_hidden, f"{name}_hidden"))
        x = nn.Dropout(self.auxiliary_dropout, deterministic=not train)(x)
        return self._dense(x, self.classes, f"{name}_logits")

    def _convolution(self, x: Array, features: int, size: int, name: str, train: bool, stride: int = 1) -> Array:
        layer = ConvolutionNorm(
            max(1, round(features * self.width)),
            size,
            stride,
            normalise=self.normalise,
            initial=_INITIAL,
            dtype=self.dtype,
            parameter_dtype=self.parameter_dtype,
            name=name,
        )
        return layer(x, train)

    def _dense(self, x: Array, features: int, name: str) -> Array:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        return Dense(features, initial_std=0.01, **dtypes, name=name)(x)


def _registered(name: str, parameters: int, auxiliary: bool, doc: str) -> None:
    """Registers GoogLeNet with or without auxiliary classifiers."""

    @register(
        name,
        family="cnn",
        objective="classify",
        paper=PAPER,
        inputs=images(224),
        parameters=parameters,
        architecture="googlenet",
        shrink={"classes": 5, "width": 0.125, "modules": (1, 1, 1), "auxiliary_hidden": 16},
        reference="the same network in torch: logits and running statistics within 1e-5",
        departures=(
            "Batch norm after each convolution, and no local response normalisation, as in torchvision, whose weights "
            "are the ones at hand (normalise=None leaves batch norm out).",
            "The 5 x 5 convolutions are 3 x 3: a slip of torchvision's that its weights depend on (largest=5 gives "
            "the paper's).",
            "The last max-pooling is 2 x 2, as in torchvision; table 1 has 3 x 3.",
            "Dropout of 0.2 before the logits, as in torchvision; the paper has 0.4.",
            "The auxiliary classifiers average over a 4 x 4 grid, as in torchvision, which works at other image sizes "
            "too; the paper has windows of 5 x 5 and stride 3.",
        ),
        difference=1.6e-6,
    )
    def build() -> GoogLeNet:
        return GoogLeNet(auxiliary=auxiliary)

    build.__doc__ = doc


_registered("googlenet-auxiliary", 13_004_888, True, "GoogLeNet as it is trained: with two auxiliary classifiers.")
_registered("googlenet", 6_624_904, False, "GoogLeNet as it is used: without the auxiliary classifiers.")
