"""VQGAN's autoencoder (Esser et al. 2021, 2012.09841), which is latent diffusion's with quantised latents too.

    z_q(x) = argmin over codes e of |z_e(x) - e|, at every place                                        (equation 2)

between the encoder and the decoder of `latent_encoder_decoder`, with a 1 x 1 convolution on either side of the
codebook. Codes are parameters. The authors' error is perceptual with a discriminator (equations 5 and 6); here the
objective "vector_quantised" trains it with squared errors, which the published models were not.

Latent diffusion (2112.10752, section 3.1) counts the codebook as part of the decoder: the diffused latents are those
before quantisation (`latents`, `decode_latents`), times `scale`, which is not applied here.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import images
from arch_jax.layers.facts import CheckpointFacts, facts_field
from arch_jax.layers.vision.halving import check_levels, check_sides
from arch_jax.layers.vision.unet_blocks import convolution
from arch_jax.models.autoencoder.autoencoder_kl import PAPER as LATENT_DIFFUSION
from arch_jax.models.autoencoder.codebook import Codebook, QuantisedAutoencoder
from arch_jax.models.autoencoder.latent_encoder_decoder import LatentDecoder, LatentEncoder
from arch_jax.ranges import Count
from arch_jax.registry import Paper, register

PAPER = Paper("Taming Transformers for High-Resolution Image Synthesis", "Esser et al.", 2020, "2012.09841")


@component("vq_model", kind="model", renamed={"picture": "resolution"})
class VQModel(QuantisedAutoencoder):
    """A vector-quantised autoencoder on images, "batch height width channels".

    Height and width may be any multiples of 2 to the number of levels less 1.

    Attributes:
      resolution: resolution in training; others are accepted too.
      channels: 1 for grey, 3 for colour.
      latent: channels between the coders and the 1 x 1 convolutions.
      codes: in the codebook.
      code_width: numbers in a code; None is as many as `latent`.
      widths: channels of each level; from one to the next, height and width are halved.
      units: residual blocks of a level of the encoder; the decoder has one more.
      groups: of the group norms, a divisor of all widths.
      attention: levels, counted from 0, with attention after each residual block.
      mid_attention: whether there is attention where the resolution is lowest.
      scale: factor of the latents for a diffusion model; not applied here.
      average: fraction of the moving averages of the codes kept at each step; None for codes that are parameters.
      least: codes whose average count falls below it are moved to a vector of the batch; 0 disables it.
      dtype: of the computation; distances to codes and the norms' statistics are at least float32.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    resolution: int = 256
    channels: int = 3
    latent: int = 3
    codes: int = 8192
    code_width: int | None = None
    widths: tuple[int, ...] = (128, 256, 512)
    units: int = 2
    groups: int = 32
    attention: tuple[Count, ...] = ()
    mid_attention: bool = True
    scale: float = 1.0
    average: float | None = None
    least: float = 0.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    facts: CheckpointFacts | None = facts_field()

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("channels", "latent", "units")}
        check_levels(self.resolution, sizes, self.widths, self.groups, self.attention)
        if self.codes < 2:
            raise UsageError(f"codes is {self.codes}; expected at least 2")
        if self.code_width is not None and self.code_width < 1:
            raise UsageError(f"code_width is {self.code_width}; expected at least 1, or none")
        if not self.scale > 0:
            raise UsageError(f"scale is {self.scale}; expected a number above 0, such as 1")
        if self.average is not None and not 0 <= self.average < 1:
            raise UsageError(f"average is {self.average}; expected a fraction from 0 to below 1, such as 0.99, or none")
        super().__post_init__()

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        shared = {"widths": self.widths, "units": self.units, "groups": self.groups, "attention": self.attention}
        shared |= {"mid_attention": self.mid_attention} | dtypes
        width = self.code_width or self.latent
        draw = functools.partial(jax.random.uniform, minval=-1 / self.codes, maxval=1 / self.codes)  # the authors'
        self.encoder = LatentEncoder(self.latent, **shared)
        self.to_code = convolution(width, 1, self.latent, **dtypes)
        self.codebook = Codebook(self.codes, width, self.average, self.least, self.parameter_dtype, draw)
        self.from_code = convolution(self.latent, 1, width, **dtypes)
        self.decoder = LatentDecoder(self.channels, **shared)

    @property
    def factor(self) -> int:
        """Pixels of an image side for one code."""
        return 2 ** (len(self.widths) - 1)

    def latents(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w code"]:
        """The encoder's output (z_e), before quantisation.

        Raises:
          UsageError: images of another number of channels, or of sides that can't be halved often enough.
        """
        self.check(x.shape[1:])
        return self.to_code(self.encoder(x))

    def pixels_of(self, codes: Float[Array, "batch h w code"]) -> Float[Array, "batch height width channels"]:
        """The image decoded from codes."""
        return self.decoder(self.from_code(codes))

    def check(self, shape: Any) -> None:
        """Refuses images that the model can't take.

        Raises:
          UsageError: `shape` ("height width channels") has another number of channels, or sides that can't be halved.
        """
        check_sides(self.factor, self.channels, shape)


_SHARED = {
    "family": "autoencoder",
    "objective": "vector_quantised",
    "architecture": "vq-f4",
    "shrink": {"resolution": 8, "codes": 5, "widths": (8, 12), "units": 1, "groups": 2},
    "reference": "diffusers VQModel: codes, reconstruction, gradients; the count is of its model at these sizes",
    "departures": (
        "Trained by the objective vector_quantised with squared errors; the published models are trained with a "
        "perceptual error and a discriminator, which need networks of their own.",
        "The latents are not rescaled in the model; scale records the constant for a diffusion model.",
    ),
    "difference": 1.4e-6,
    "no_gradient": {"key/bias": "the same term for every key; softmax does not change with it"},
}


@register("vq-f4", inputs=images(256), paper=LATENT_DIFFUSION, parameters=55_322_782, **_SHARED)
def vq_f4() -> VQModel:
    """Latent diffusion's vq-f4: 4 x 4 pixels become one of 8,192 codes of 3 numbers."""
    return VQModel()


@register(
    "vq-f8",
    inputs=images(256),
    paper=LATENT_DIFFUSION,
    parameters=62_404_783,
    **_SHARED | {"shrink": _SHARED["shrink"] | {"attention": (1,)}},
)
def vq_f8() -> VQModel:
    """Latent diffusion's vq-f8: 8 x 8 pixels become one of 16,384 codes of 4 numbers."""
    return VQModel(latent=4, codes=16_384, widths=(128, 128, 256, 512), attention=(3,))
