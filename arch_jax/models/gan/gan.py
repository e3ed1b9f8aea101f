"""Generative adversarial networks (Goodfellow et al. 2014, 1406.2661): G maps noise to points, D scores them.

    min_G max_D V(D, G) = E_x[log D(x)] + E_z[log(1 - D(G(z)))]                                    (equation 1)

For a given G the best D is p / (p + q) (proposition 1), and V is then -log 4 + 2 JSD(p, q) (theorem 1), so that the
value at the optimum is -log 4. Here D gives the logit: D(x) = sigmoid(score(x)).

The sizes of the registered pair are those with which PacGAN (Lin et al. 2018, 1712.04086) measured it on mixtures of
Gaussians: four hidden layers of 400 with batch norm against three maxout layers of 200 with 5 pieces.
"""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, Kind, component
from arch_jax.inputs import points
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import Norm, adapted
from arch_jax.layers.norms import BatchNorm
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.ops.maximum import largest
from arch_jax.registry import Paper, register


@component("mlp_generator", kind="generator")
class Generator(nn.Module):
    """Noise to a point, by hidden layers of f(norm(x W)), and a linear output.

    Attributes:
      latent: dimensions of the noise, which is standard normal.
      features: coordinates of a point.
      hidden: widths of the hidden layers.
      norm: between each hidden layer and its activation, or None; with one, hidden layers have no bias.
      activation: name of f.
      initial_std: standard deviation of the initial weights.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    latent: int = 2
    features: int = 2
    hidden: tuple[int, ...] = (400, 400, 400, 400)
    norm: Norm | None = BatchNorm()
    activation: str = "relu"
    initial_std: float = 0.02
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        _positive(latent=self.latent, features=self.features, hidden=min(self.hidden, default=1))
        super().__post_init__()

    @nn.compact
    def __call__(self, latent: Float[Array, "batch latent"], train: bool = False) -> Float[Array, "batch features"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        x = latent
        for i, width in enumerate(self.hidden):
            x = Dense(width, self.norm is None, self.initial_std, **dtypes, name=f"hidden_{i}")(x)
            if self.norm is not None:
                x = adapted(self.norm, **dtypes).clone(parent=self, name=f"norm_{i}")(x, train)
            x = activation(self.activation)(x)
        return Dense(self.features, True, self.initial_std, **dtypes, name="output")(x)


@component("maxout_discriminator", kind="discriminator")
class Discriminator(nn.Module):
    """A point to a score, by maxout layers: h_i = max_j (x W_ij + b_ij) (Goodfellow et al. 2013, 1302.4389).

    Attributes:
      hidden: widths of the hidden layers.
      pieces: number of affine maps in each maximum.
      initial_std: standard deviation of the initial weights.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    hidden: tuple[int, ...] = (200, 200, 200)
    pieces: int = 5
    initial_std: float = 0.02
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        _positive(pieces=self.pieces, hidden=min(self.hidden, default=1))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool = False) -> Float[Array, "batch"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        for i, width in enumerate(self.hidden):
            x = Dense(width * self.pieces, True, self.initial_std, **dtypes, name=f"hidden_{i}")(x)
            pieces = x.reshape(len(x), width, self.pieces)
            x = largest([pieces[..., j] for j in range(self.pieces)])
        return Dense(1, True, self.initial_std, **dtypes, name="output")(x)[:, 0]


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} is {size}; expected at least 1")


@component("gan", kind="model")
class GAN(nn.Module):
    """A generator and a discriminator, whose parameters lie under "G" and "D".

    Attributes:
      generator: G, called with (latent, train).
      discriminator: D's logit, called with (x, train).
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    generator: Annotated[nn.Module, Kind("generator")] = Generator()
    discriminator: Annotated[nn.Module, Kind("discriminator")] = Discriminator()
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        self.G = adapted(self.generator, **dtypes)
        self.D = adapted(self.discriminator, **dtypes)

    def __call__(self, latent: Float[Array, "batch latent"], train: bool = False) -> Float[Array, "batch"]:
        """D's logit of G(z)."""
        return self.D(self.G(latent, train), train)

    def generate(self, latent: Float[Array, "batch latent"], train: bool = False) -> Float[Array, "batch features"]:
        """G(z)."""
        return self.G(latent, train)

    def score(self, x: Float[Array, "batch features"], train: bool = False) -> Float[Array, "batch"]:
        """D's logit of points, positive for points judged real."""
        return self.D(x, train)


@register(
    "gan",
    family="gan",
    objective="adversarial",
    paper=Paper("Generative Adversarial Networks", "Goodfellow et al.", 2014, "1406.2661"),
    inputs=points(2),
    shrink={"generator.hidden": (12, 12), "discriminator.hidden": (6, 6), "discriminator.pieces": 3},
    reference="the same layers in torch: scores, losses and gradients within 1e-5",
    departures=(
        "Sizes are PacGAN's (1712.04086) for mixtures of Gaussians; the paper's own networks are for images.",
        "The discriminator gives a logit, and the loss takes its sigmoid: the same value without overflow.",
        "No dropout in the discriminator, which the paper has for its networks on images.",
    ),
    difference=1.7e-6,
    reproduces="modes of a ring of 8 Gaussians (gan_ring)",
)
def gan() -> GAN:
    """The original GAN on points in the plane, at the size with which PacGAN measured how many modes it finds."""
    return GAN()
