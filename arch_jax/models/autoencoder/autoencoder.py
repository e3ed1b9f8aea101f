"""Autoencoders without probabilities: linear, deep, convolutional and sparse.

    code = g(x),   reconstruction = h(code)

A linear one of squared error spans the subspace of the principal components (Baldi & Hornik 1989). The deep one is
Hinton & Salakhutdinov's (2006), and the k-sparse one keeps the k largest units of its code (Makhzani & Frey 2014,
1312.5663). The loss, and noise on the inputs, belong to the objective "autoencode".
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType, component
from arch_jax.inputs import images
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.models.autoencoder.convolutional import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    check_resolution,
    check_shape,
)
from arch_jax.ops.latents import largest_only
from arch_jax.registry import Paper, register

HINTON = Paper(
    "Reducing the Dimensionality of Data with Neural Networks",
    "Hinton & Salakhutdinov",
    2006,
    url="https://www.cs.toronto.edu/~hinton/absps/science_som.pdf",
)
BALDI = Paper(
    "Neural Networks and Principal Component Analysis: Learning from Examples Without Local Minima",
    "Baldi & Hornik",
    1989,
    url="https://doi.org/10.1016/0893-6080(89)90014-2",
)
MASCI = Paper(
    "Stacked Convolutional Auto-Encoders for Hierarchical Feature Extraction",
    "Masci et al.",
    2011,
    url="https://doi.org/10.1007/978-3-642-21735-7_7",
)
MAKHZANI = Paper("k-Sparse Autoencoders", "Makhzani & Frey", 2014, "1312.5663")


@component("autoencoder", kind="model", renamed={"picture": "resolution"})
class Autoencoder(nn.Module):
    """An image autoencoder; `encode` and `decode` are the two halves.

    Attributes:
      resolution: resolution.
      channels: 1 for grey, 3 for colour.
      latent: numbers in the code.
      hidden: width of the dense layers of the encoder; the decoder has them in reverse order.
      widths: channels of the convolutions in front of them, each of which halves the image.
      activation: between layers.
      code_activation: of the code; None leaves it linear.
      kept: the number of the code's units that are kept, the largest; None keeps all.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    resolution: int = 28
    channels: int = 1
    latent: int = 32
    hidden: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    activation: str = "relu"
    code_activation: str | None = None
    kept: int | None = None
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_shape(self.resolution, self.channels, self.widths)
        super().__post_init__()

    def setup(self) -> None:
        shared = {"widths": self.widths, "hidden": self.hidden, "activation": self.activation}
        shared |= {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        self.encoder = ConvolutionalEncoder(self.latent, **shared)
        self.decoder = ConvolutionalDecoder(self.resolution, self.channels, **shared)

    def encode(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch latent"]:
        """The code of each image.

        Raises:
          UsageError: images of another shape.
        """
        self.check(x.shape[1:])
        code = self.encoder(x)
        code = code if self.code_activation is None else activation(self.code_activation)(code)
        return code if self.kept is None else largest_only(code, self.kept)

    def decode(self, code: Float[Array, "*batch latent"]) -> Float[Array, "*batch height width channels"]:
        """The reconstruction from a code, linear in the last layer: pixels or logits, as the objective has it."""
        return self.decoder(code)

    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        """The reconstruction of each image."""
        return self.decode(self.encode(x))

    def check(self, shape: Any) -> None:
        """Refuses images of another shape.

        Raises:
          UsageError: `shape` ("height width channels") is another.
        """
        check_resolution(self.resolution, self.channels, shape)


_TINY = {"resolution": 8, "latent": 3}
_SHARED = {
    "family": "autoencoder",
    "objective": "autoencode",
    "inputs": images(28, 1),
}


@register(
    "autoencoder-linear",
    paper=BALDI,
    architecture="autoencoder",
    shrink=_TINY,
    reference="principal components: the optimum's error and subspace are theirs",
    departures=("Both layers have biases, since pixels are not centred; the paper assumes centred data and has none.",),
    **_SHARED,
)
def autoencoder_linear() -> Autoencoder:
    """Linear in and out of 32 numbers: at its optimum the subspace of the first 32 principal components."""
    return Autoencoder()


@register(
    "autoencoder-deep",
    paper=HINTON,
    architecture="autoencoder",
    shrink=_TINY | {"hidden": (7, 5)},
    reference="the paper's layers, counted by hand",
    departures=(
        "Trained from Glorot's initializer; the paper first pre-trains each pair of layers as a restricted Boltzmann "
        "machine, which adaptive optimizers made unnecessary.",
    ),
    **_SHARED,
)
def autoencoder_deep() -> Autoencoder:
    """784-1000-500-250-30 and back, logistic units and a linear code: the paper's for MNIST, 2,837,314 parameters."""
    return Autoencoder(latent=30, hidden=(1000, 500, 250), activation="sigmoid")


@register(
    "autoencoder-convolutional",
    paper=MASCI,
    shrink=_TINY | {"widths": (4, 6)},
    reference="a transposed convolution is the adjoint of a convolution",
    departures=(
        "Convolutions of stride 2 halve the image, and a dense layer makes the code; the paper has max-pooling and "
        "codes that are maps. The strided form is the customary one today.",
        "Encoder and decoder have weights of their own; the paper ties the decoder's filters to the encoder's, "
        "flipped.",
        "ReLU, and training of all layers together; the paper has a scaled tanh and trains layer by layer.",
    ),
    **_SHARED,
)
def autoencoder_convolutional() -> Autoencoder:
    """Two convolutions of stride 2, 32 numbers, and two transposed convolutions."""
    return Autoencoder(widths=(32, 64))


@register(
    "autoencoder-k-sparse",
    paper=MAKHZANI,
    shrink=_TINY | {"latent": 12, "kept": 4},
    reference="the k largest units by sorting",
    departures=(
        "Encoder and decoder have weights of their own; the paper ties them. The decoder's weights then mean the same "
        "in every autoencoder here.",
        "The number of units kept is fixed; the paper anneals it over the first epochs, and keeps a multiple of it "
        "when features are extracted.",
    ),
    **_SHARED,
)
def autoencoder_k_sparse() -> Autoencoder:
    """1,000 linear units of which the 25 largest are kept, as in the paper's experiments on MNIST."""
    return Autoencoder(latent=1000, kept=25)
