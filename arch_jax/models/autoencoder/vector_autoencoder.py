"""Autoencoders of vectors: the denoising one, which learns the score, and the sparse one, which learns a dictionary.

    code = f(W x + b),   reconstruction = V code + c

Trained to restore x from x + noise, the best reconstruction r is the mean of x given the noisy vector, and so

    (r(x) - x) / noise^2 = grad log p(x),   p the density of the noisy vectors

(Vincent 2011; Alain & Bengio 2014, 1211.4246, theorem 1). With more units than coordinates and few of them active at a
time, the rows of V become the parts of which vectors are sums (Olshausen & Field 1996). The loss and the
sparsity penalty belong to the objective "autoencode".
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import vectors
from arch_jax.layers.dense import Dense
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.models.autoencoder.convolutional import GLOROT
from arch_jax.ops.latents import largest_only
from arch_jax.registry import Paper, register

DENOISING = Paper(
    "Extracting and Composing Robust Features with Denoising Autoencoders",
    "Vincent et al.",
    2008,
    url="https://doi.org/10.1145/1390156.1390294",
)
SPARSE = Paper("Sparse Autoencoder", "Ng", 2011, url="https://web.stanford.edu/class/cs294a/sparseAutoencoder.pdf")


@component("vector_autoencoder", kind="model")
class VectorAutoencoder(nn.Module):
    """A vector autoencoder; `encode` and `decode` are the two halves.

    Attributes:
      features: coordinates of a vector.
      latent: numbers in the code.
      hidden: widths of the layers between vector and code; between code and reconstruction they are in reverse order.
      activation: of these layers.
      code_activation: of the code; None leaves it linear.
      kept: the number of the code's units that are kept, the largest; None keeps all.
      unit_atoms: whether each row of V is scaled to length 1, as Olshausen & Field fix their lengths: else the sparsity
        penalty is escaped by small codes and long rows. For a decoder without hidden layers.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    features: int = 2
    latent: int = 64
    hidden: tuple[int, ...] = ()
    activation: str = "tanh"
    code_activation: str | None = "relu"
    kept: int | None = None
    unit_atoms: bool = False
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        for name in ("features", "latent"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        if min(self.hidden, default=1) < 1:
            raise UsageError(f"hidden is {tuple(self.hidden)}; expected widths of at least 1, such as (128,)")
        if self.kept is not None and not 1 <= self.kept <= self.latent:
            raise UsageError(f"kept is {self.kept}; expected 1 to {self.latent}, the units of the code, or none")
        if self.unit_atoms and self.hidden:
            raise UsageError(f"unit_atoms is true and hidden is {tuple(self.hidden)}; expected one without the other")
        super().__post_init__()

    def setup(self) -> None:
        layer = lambda width: Dense(width, initial=GLOROT, dtype=self.dtype, parameter_dtype=self.parameter_dtype)
        self.encoder_hidden = [layer(width) for width in self.hidden]
        self.encoder = layer(self.latent)
        self.decoder_hidden = [layer(width) for width in reversed(self.hidden)]
        self.decoder = layer(self.features)

    def encode(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch latent"]:
        """The code of each vector.

        Raises:
          UsageError: vectors of another size.
        """
        self.check(x.shape[-1:])
        x = x.astype(self.dtype)
        for layer in self.encoder_hidden:
            x = activation(self.activation)(layer(x))
        code = self.encoder(x)
        code = code if self.code_activation is None else activation(self.code_activation)(code)
        return code if self.kept is None else largest_only(code, self.kept)

    def decode(self, code: Float[Array, "*batch latent"]) -> Float[Array, "*batch features"]:
        """The reconstruction from a code."""
        x = code.astype(self.dtype)
        for layer in self.decoder_hidden:
            x = activation(self.activation)(layer(x))
        if not self.unit_atoms:
            return self.decoder(x)
        kernel, bias = self.decoder.weights(x.shape[-1])
        return x @ unit_rows(kernel) + bias

    def __call__(self, x: Float[Array, "*batch features"], train: bool = False) -> Float[Array, "*batch features"]:
        """The reconstruction of each vector."""
        return self.decode(self.encode(x))

    def atoms(self) -> Float[Array, "latent features"]:
        """Dictionary atoms: each unit's contribution to the reconstruction, at length 1; without hidden layers.

        Raises:
          UsageError: there are hidden layers, so that units have no fixed contribution.
        """
        if self.hidden:
            raise UsageError(f"hidden is {tuple(self.hidden)}; expected none, for the code's units to be sums' parts")
        return unit_rows(self.decoder.weights(self.latent)[0])

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses vectors of another size.

        Raises:
          UsageError: `shape` ("features") is another.
        """
        if tuple(shape) != (self.features,):
            raise UsageError(
                f"the vectors have the shape {' x '.join(map(str, shape))}, and the model takes {self.features} "
                f"coordinates; set model.features={shape[-1]}"
            )


def unit_rows(x: Float[Array, "rows size"]) -> Float[Array, "rows size"]:
    """Each row divided by its Euclidean length; rows of 0 stay 0."""
    precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # a square of 256 is beyond float16
    square = jnp.sum(jnp.square(precise), axis=-1, keepdims=True)
    return (precise * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)


_SHARED = {"family": "autoencoder", "objective": "autoencode", "architecture": "vector_autoencoder"}


@register(
    "autoencoder-denoising",
    paper=DENOISING,
    inputs=vectors(2),
    shrink={"latent": 5, "hidden": (6,)},
    reference="the score of a mixture of Gaussians, in closed form",
    departures=(
        "Normal noise on all coordinates; the paper sets some of them to 0. Theorem 1 of 1211.4246, by which it is "
        "tested, is of normal noise.",
        "Hidden layers with SiLU units and no tied weights; the paper has one sigmoid layer with tied weights. The "
        "score of a mixture of Gaussians calls for more than one layer.",
    ),
    reproduces="the score of noisy data, by theorem 1 of 1211.4246 (denoising_score)",
    **_SHARED,
)
def autoencoder_denoising() -> VectorAutoencoder:
    """2-128-128-128-2 with SiLU units, for points in the plane."""
    return VectorAutoencoder(latent=128, hidden=(128,), activation="silu", code_activation="silu")


@register(
    "autoencoder-sparse",
    paper=SPARSE,
    inputs=vectors(64),
    shrink={"features": 6, "latent": 9},
    reference="planted dictionaries, recovered",
    departures=(
        "Rectified units with a penalty on their activity; the notes have sigmoid units with a penalty on their mean "
        "activity, which the objective has too.",
        "Rows of V are scaled to length 1, as Olshausen & Field (1996) do; else the penalty is escaped by small codes "
        "and long rows. The notes have weight decay instead.",
    ),
    reproduces="the atoms of a planted dictionary (sparse_dictionary)",
    **_SHARED,
)
def autoencoder_sparse() -> VectorAutoencoder:
    """64 coordinates, 256 rectified units, and rows of V of length 1."""
    return VectorAutoencoder(features=64, latent=256, unit_atoms=True)
