"""VQ-VAE (van den Oord et al. 2017, 1711.00937): an autoencoder whose code is a grid of codebook entries.

    z_q(x) = e_k,   k = argmin_j |z_e(x) - e_j|                                (equations 1 and 2)

Two convolutions of 4 x 4 and stride 2 and two residual blocks encode, two residual blocks and two transposed
convolutions decode (section 4.1). The gradient of the reconstruction goes through the nearest code as if it were z_e.
Codes follow the vectors that choose them by moving averages (appendix A.1), or by a gradient of their own (equation 3).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import images
from arch_jax.layers.vision.convolution import Convolution, TransposedConvolution
from arch_jax.models.autoencoder.codebook import Codebook, QuantisedAutoencoder
from arch_jax.models.autoencoder.convolutional import check_resolution, check_shape
from arch_jax.registry import Paper, register

PAPER = Paper("Neural Discrete Representation Learning", "van den Oord et al.", 2017, "1711.00937")


class ResidualUnit(nn.Module):
    """x + K2 * relu(K1 * relu(x)): a 3 x 3 and a 1 x 1 convolution (1711.00937, section 4.1).

    Attributes:
      hidden: channels between the two.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    hidden: int
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        y = Convolution(self.hidden, 3, **dtypes, name="convolution_1")(nn.relu(x))
        return x + Convolution(x.shape[-1], 1, **dtypes, name="convolution_2")(nn.relu(y))


class Residuals(nn.Module):
    """A convolution or two to `width` channels, followed by residual units.

    Attributes:
      width: channels.
      hidden: channels inside the units.
      units: number of residual units.
      halvings: convolutions of 4 x 4 and stride 2 in front.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    width: int
    hidden: int
    units: int
    halvings: int = 0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        for number in range(self.halvings):
            width = self.width // 2 if number < self.halvings - 1 else self.width
            x = nn.relu(Convolution(width, 4, 2, 1, **dtypes, name=f"halving_{number}")(x))
        x = Convolution(self.width, 3, **dtypes, name="convolution")(x)
        for number in range(self.units):
            x = ResidualUnit(self.hidden, **dtypes, name=f"unit_{number}")(x)
        return nn.relu(x)


@component("vq_vae", kind="model", renamed={"picture": "resolution"})
class VQVAE(QuantisedAutoencoder):
    """A vector-quantised autoencoder on images, "batch height width channels".

    Attributes:
      resolution: resolution, a multiple of 4.
      channels: 1 for grey, 3 for colour.
      codes: in the codebook.
      code_width: numbers in a code.
      width: channels of the convolutions.
      hidden: channels inside the residual units.
      units: residual units on each side.
      average: fraction of the moving averages of the codes kept at each step; None for codes that are parameters.
      least: codes whose average count falls below it are moved to a vector of the batch; 0 disables it.
      dtype: of the computation; distances to codes are at least float32.
      parameter_dtype: of the parameters and the codes.
    """

    resolution: int = 32
    channels: int = 3
    codes: int = 512
    code_width: int = 64
    width: int = 128
    hidden: int = 32
    units: int = 2
    average: float | None = 0.99
    least: float = 0.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_shape(self.resolution, self.channels, (self.width,) * 2)
        if self.codes < 2:
            raise UsageError(f"codes is {self.codes}; expected at least 2")
        if self.average is not None and not 0 <= self.average < 1:
            raise UsageError(f"average is {self.average}; expected a fraction from 0 to below 1, such as 0.99, or none")
        super().__post_init__()

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        self.encoder = Residuals(self.width, self.hidden, self.units, halvings=2, **dtypes)
        self.to_code = Convolution(self.code_width, 1, **dtypes)
        self.codebook = Codebook(self.codes, self.code_width, self.average, self.least, self.parameter_dtype)
        self.decoder = Residuals(self.width, self.hidden, self.units, **dtypes)
        self.doubling = TransposedConvolution(self.width // 2, **dtypes)
        self.pixels = TransposedConvolution(self.channels, **dtypes)

    def latents(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w code"]:
        """The encoder's output (z_e) for places 4 pixels apart, before quantisation.

        Raises:
          UsageError: images of another shape.
        """
        self.check(x.shape[1:])
        return self.to_code(self.encoder(x))

    def pixels_of(self, codes: Float[Array, "batch h w code"]) -> Float[Array, "batch height width channels"]:
        """The image decoded from codes."""
        return self.pixels(nn.relu(self.doubling(self.decoder(codes))))

    def check(self, shape: Any) -> None:
        """Refuses images of another shape.

        Raises:
          UsageError: `shape` ("height width channels") is another.
        """
        check_resolution(self.resolution, self.channels, shape)


@register(
    "vq-vae",
    family="autoencoder",
    objective="vector_quantised",
    paper=PAPER,
    inputs=images(32),
    shrink={"resolution": 8, "codes": 5, "code_width": 4, "width": 8, "hidden": 4},
    reference="nearest codes by all differences; moving averages without memory are k-means",
    departures=(
        "128 channels, and 32 inside the residual units, as in the authors' example; section 4.1 has 256 hidden units "
        "throughout.",
        "Codes follow by moving averages (appendix A.1), as in that example; the paper's main text trains them by a "
        "gradient (average=None).",
    ),
    reproduces="reconstruction and perplexity on Fashion-MNIST (vqvae_fashion)",
)
def vq_vae() -> VQVAE:
    """512 codes of 64 numbers, 8 x 8 of them for an image of CIFAR-10, in the sizes of the authors' example."""
    return VQVAE()
