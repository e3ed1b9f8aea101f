"""LeNet-5 (LeCun et al. 1998, section II.B), layer by layer as the paper has it, and in its modern form.

With f(a) = 1.7159 tanh(2a/3) after every layer up to F6, on images of 32 x 32 pixels:

    C1  5 x 5 convolution,  1 -> 6 maps of 28 x 28                                             156 parameters
    S2  sum over 2 x 2 windows, times a coefficient, plus a bias, 6 maps of 14 x 14             12
    C3  5 x 5 convolution, 6 -> 16 maps of 10 x 10, each joined to some of the 6 (table I)   1,516
    S4  as S2, 16 maps of 5 x 5                                                                 32
    C5  5 x 5 convolution, 16 -> 120 maps of 1 x 1                                          48,120
    F6  full connection, 120 -> 84                                                          10,164
    output  y_i = sum_j (x_j - w_ij)^2 with fixed codes w_ij of -1 and +1 (equation 7)           0
                                                                                            60,000

The logits are -y_i: the softmax's cross-entropy is then the paper's criterion (equation 9), whose constant class is the
field `rubbish` of the objective "classify".
"""

import functools
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, Kind, component
from arch_jax.inputs import images
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import Norm, adapted
from arch_jax.layers.norms import BatchNorm
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.layers.vision.convolution import Convolution, MaxPool, Pool, Subsampling
from arch_jax.ops.convolution.dense import convolve
from arch_jax.registry import Paper, register

PAPER = Paper(
    "Gradient-Based Learning Applied to Document Recognition",
    "LeCun et al.",
    1998,
    url="http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf",
)

#: Table I: the maps of S2 (of 6) that each of C3's 16 maps is joined to.
CONNECTIONS = (
    *(tuple(sorted((i + j) % 6 for j in range(3))) for i in range(6)),
    *(tuple(sorted((i + j) % 6 for j in range(4))) for i in range(6)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)

#: The ten digits on 7 x 12 pixels. The paper shows its own only in a figure (3); these are drawn in its style.
DIGITS = """
.#####. ...##.. .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
##...## ..###.. ##...## ##...## ...###. ##..... .##.... ##...## ##...## ##...##
##...## .####.. ##...## .....## ..####. ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## .....## .##.##. ##..... ##..... ....##. ##...## ##...##
##...## ...##.. .....## .....## ##..##. ######. ######. ....##. .##.##. ##...##
##...## ...##.. ....##. ..####. ##..##. .....## ##...## ...##.. ..###.. .######
##...## ...##.. ...##.. .....## ##..##. .....## ##...## ...##.. .##.##. .....##
##...## ...##.. ..##... .....## ####### .....## ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
##...## ...##.. ##..... .....## ....##. ##...## ##...## .##.... ##...## ....##.
##...## ...##.. ##..... ##...## ....##. ##...## ##...## .##.... ##...## ...##..
.#####. .###### ####### .#####. ....##. .#####. .#####. .##.... .#####. .####..
"""


def uniform(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """Uniform on +-2.4 / fan-in, the paper's initializer."""
    limit = 2.4 / int(np.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -limit, limit)


@functools.cache
def codes(classes: int) -> np.ndarray:
    """The output layer's fixed codes of -1 and +1, "classes 84": the digits, or for other numbers of classes random."""
    if classes != 10:  # "Random with equal probabilities" is the paper's other choice
        return np.random.default_rng(classes).choice([-1.0, 1.0], size=(classes, 84)).astype(np.float32)
    rows = [line.split() for line in DIGITS.split("\n") if line]
    return np.array([[1.0 if c == "#" else -1.0 for row in rows for c in row[k]] for k in range(10)], np.float32)


@component("radial_basis", kind="head")
class RadialBasis(nn.Module):
    """Euclidean radial basis functions: the logit of class i is -sum_j (x_j - w_ij)^2, with fixed codes w (equation 7).

    Attributes:
      dtype: of the computation.
      parameter_dtype: unused, as there are no parameters; every part takes it.
    """

    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch 84"], classes: int) -> Float[Array, "batch classes"]:
        difference = x.astype(self.dtype)[:, None, :] - jnp.asarray(codes(classes), self.dtype)
        return -jnp.square(difference).sum(-1)


@component("linear", kind="head")
class Linear(nn.Module):
    """Logits x W + b, the modern replacement of radial basis functions.

    Attributes:
      dtype: of the computation.
      parameter_dtype: of W and b.
    """

    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], classes: int) -> Float[Array, "batch classes"]:
        settings = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype, "initial": uniform}
        return Dense(classes, **settings, name="logits")(x)


class TableConvolution(nn.Module):
    """A 5 x 5 convolution from 6 to 16 maps with a kernel only where table I has a connection.

    Attributes:
      dtype: of the computation.
      parameter_dtype: of the kernels and the bias.
    """

    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width 6"]) -> Float[Array, "batch new_height new_width 16"]:
        source = np.concatenate(CONNECTIONS)
        target = np.repeat(np.arange(16), [len(maps) for maps in CONNECTIONS])

        def initial(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:  # a map's fan-in: 25 times its sources
            limit = 2.4 / (25 * np.bincount(target)[target])
            return jax.random.uniform(key, shape, dtype, -1, 1) * limit.astype(dtype)

        kernels = self.param("kernel", initial, (5, 5, len(source)), self.parameter_dtype)
        kernel = (
            jnp.zeros((5, 5, 6, 16), self.dtype)
            .at[:, :, source, target]
            .set(kernels.astype(self.dtype), unique_indices=True)
        )
        bias = self.param("bias", nn.initializers.zeros, (16,), self.parameter_dtype).astype(self.dtype)
        return convolve(x.astype(self.dtype), kernel, padding=0) + bias


@component("lenet5", kind="model")
class LeNet5(nn.Module):
    """LeNet-5 on images of 32 x 32 pixels, "batch 32 32 channels"; the paper scales them to -0.1 ... 1.175.

    Attributes:
      classes: number of classes.
      connections: of C3 with S2: those of the paper's "table", or "full".
      pool: S2 and S4.
      head: the output layer on F6's 84 activations.
      norm: between each convolution and its activation, or None.
      activation: f, after every layer up to F6.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    classes: int = 10
    connections: Literal["table", "full"] = "table"
    pool: Pool = Subsampling()
    head: Annotated[nn.Module, Kind("head")] = RadialBasis()
    norm: Norm | None = None
    activation: str = "scaled_tanh"
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise UsageError(f"classes is {self.classes}; expected at least 2")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits of each class.

        Raises:
          UsageError: images of another size than 32 x 32.
        """
        self.check(images.shape[1:])
        f = activation(self.activation)
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        part = lambda module, name: adapted(module, **dtypes).clone(parent=self, name=name)
        convolution = functools.partial(
            Convolution, size=5, padding=0, bias=self.norm is None, initial=uniform, parent=self, **dtypes
        )

        def activated(x: Array, name: str) -> Array:
            return f(x if self.norm is None else part(self.norm, f"{name}_norm")(x, train))

        x = activated(convolution(6, name="c1")(images), "c1")
        x = part(self.pool, "s2")(x)
        c3 = TableConvolution(**dtypes, name="c3") if self.connections == "table" else convolution(16, name="c3")
        x = activated(c3(x), "c3")
        x = part(self.pool, "s4")(x)
        x = activated(convolution(120, name="c5")(x), "c5")
        x = x.reshape(len(x), 120)
        x = f(Dense(84, **dtypes, initial=uniform, name="f6")(x))
        return part(self.head, "output")(x, self.classes)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses images of another size.

        Raises:
          UsageError: `shape` ("height width channels") is not 32 x 32.
        """
        if tuple(shape[:2]) != (32, 32):
            side = shape[0]
            advice = f"data.pad={(32 - side) // 2}" if side < 32 and side % 2 == 0 and side > 20 else "data.resize=32"
            raise UsageError(f"the images have {shape[0]} x {shape[1]} pixels, and LeNet-5 takes 32 x 32; set {advice}")


@register(
    "lenet5",
    family="cnn",
    objective="classify",
    paper=PAPER,
    parameters=60_000,
    inputs=images(32, 1),
    reference="the same network in torch: logits within 1e-5",
    departures=(
        "The digits that the output codes show are drawn anew in 7 x 12 pixels; the paper prints its own as a figure "
        "only.",
        "The criterion is the softmax's cross-entropy with a constant class (rubbish), which is equation 9; the "
        "optimizer is any, where the paper has a diagonal Levenberg-Marquardt method.",
    ),
    difference=1.1e-6,
    reproduces="handwritten digits (lenet_digits), Fashion-MNIST (lenet_fashion)",
)
def lenet5() -> LeNet5:
    """LeNet-5 as it was published: trainable subsampling, the table of connections, radial basis functions."""
    return LeNet5()


@register(
    "lenet5-bn",
    family="cnn",
    objective="classify",
    paper=Paper("Batch Normalization: Accelerating Deep Network Training", "Ioffe & Szegedy", 2015, "1502.03167"),
    inputs=images(32, 1),
    reference="the same network in torch: logits and moving averages after a training step within 1e-5",
    departures=(
        "The paper on batch norm has no LeNet-5: this is LeNet-5 in its modern form, with batch norm, ReLU, "
        "max-pooling, full connections and linear outputs.",
    ),
    difference=1.4e-6,
)
def lenet5_batch_norm() -> LeNet5:
    """LeNet-5 in today's form: batch norm, ReLU, max-pooling, every map joined to every other, linear output."""
    return LeNet5(connections="full", pool=MaxPool(), head=Linear(), norm=BatchNorm(), activation="relu")
