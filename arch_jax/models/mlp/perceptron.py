"""The perceptron (Rosenblatt 1958) and the multilayer perceptron (Rumelhart, Hinton & Williams 1986).

    s = x W + b                                             one score for each class; the largest is the answer
    s = h_n W_n + b_n,  h_i = f(h_(i-1) W_(i-1) + b_(i-1)),  h_0 = x

One layer separates only by hyperplanes: no perceptron computes XOR (Minsky & Papert 1969, section 2.1), and two
hidden units suffice for it (Rumelhart et al. 1986). Rosenblatt's rule is the criterion "perceptron" of the
objective "classify".
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import images
from arch_jax.layers.dense import Dense
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.registry import Paper, register


@component("multilayer_perceptron", kind="model")
class MultilayerPerceptron(nn.Module):
    """Fully connected layers, on the flattened pixels of "batch height width channels".

    Attributes:
      classes: number of classes.
      hidden: widths of the hidden layers; without any it is the perceptron.
      activation: f.
      initial_std: standard deviation of the initial weights; None is width^-1/2 of each layer's input.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    classes: int = 10
    hidden: tuple[int, ...] = (300, 100)
    activation: str = "tanh"
    initial_std: float | None = None
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise UsageError(f"classes is {self.classes}; expected at least 2")
        if min(self.hidden, default=1) < 1:
            raise UsageError(f"hidden is {tuple(self.hidden)}; expected widths of at least 1, such as (300, 100)")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Scores of each class: logits, where the objective takes them so."""
        settings = {"initial_std": self.initial_std, "dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        x = images.reshape(len(images), -1)
        for number, width in enumerate(self.hidden, start=1):
            x = activation(self.activation)(Dense(width, **settings, name=f"hidden_{number}")(x))
        return Dense(self.classes, **settings, name="scores")(x)


@register(
    "perceptron",
    family="mlp",
    objective="classify",
    paper=Paper(
        "The perceptron: a probabilistic model for information storage and organization in the brain",
        "Rosenblatt",
        1958,
        url="doi.org/10.1037/h0042519",
    ),
    inputs=images(28, 1),
    parameters=7_850,
    architecture="multilayer_perceptron",
    shrink={"classes": 5, "initial_std": 0.5},
    reference="Rosenblatt's rule in NumPy: the same weights after every example",
    departures=(
        "Inputs are the pixels themselves; the paper puts a layer of fixed random association units before them.",
        "A score for each class, trained by Rosenblatt's rule in Kesler's form; the paper's single unit tells two "
        "classes apart.",
    ),
    difference=0.0,
    reproduces="which gates one layer learns (xor)",
)
def perceptron() -> MultilayerPerceptron:
    """No hidden layer; the weights start at 0."""
    return MultilayerPerceptron(hidden=(), initial_std=0.0)


@register(
    "mlp",
    family="mlp",
    objective="classify",
    paper=Paper(
        "Learning representations by back-propagating errors",
        "Rumelhart, Hinton & Williams",
        1986,
        url="doi.org/10.1038/323533a0",
    ),
    inputs=images(28, 1),
    parameters=266_610,
    architecture="multilayer_perceptron",
    shrink={"classes": 5, "hidden": (8, 6)},
    reference="the same network in torch: logits and gradients within 1e-5",
    departures=(
        "tanh units, and the sizes with which LeNet-5 is compared (LeCun et al. 1998, section III.C.4); the paper of "
        "1986 has logistic units and small tasks.",
    ),
    reproduces="XOR by two hidden units (xor)",
)
def mlp() -> MultilayerPerceptron:
    """784-300-100-10, the network that LeNet-5 is compared with (LeCun et al. 1998, section III.C.4: 3.05 % error)."""
    return MultilayerPerceptron()
