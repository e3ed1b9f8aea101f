"""The autoencoder of latent diffusion with a Kullback-Leibler penalty (Rombach et al. 2022, 2112.10752, section 3.1).

A variational autoencoder whose latent variables are a smaller image z of a few channels,

    q(z | x) = N(mean(x), variance(x)),   x' = D(z)                                                (appendix G)

with the encoder and the decoder of VQGAN (Esser et al. 2021). The penalty is slight, about 1e-6 of the reconstruction
error; the authors' error is absolute and perceptual, with a discriminator. Here the objective "variational" trains it
with normal pixels of a given variance, which the published models were not.

For diffusion, latents are scaled to unit variance: the denoiser sees (z - shift) * scale, and z = y / scale + shift of
its output y is decoded (appendix G). Nothing here applies this: `scale` and `shift` only record a model's constants.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import images
from arch_jax.layers.facts import CheckpointFacts, facts_field
from arch_jax.layers.vision.halving import check_levels, check_sides
from arch_jax.layers.vision.unet_blocks import convolution
from arch_jax.models.autoencoder.latent_encoder_decoder import LatentDecoder, LatentEncoder
from arch_jax.ops.latents import draw_gaussian, gaussian_log_density
from arch_jax.ranges import Count, Signed
from arch_jax.registry import Paper, register

PAPER = Paper("High-Resolution Image Synthesis with Latent Diffusion Models", "Rombach et al.", 2021, "2112.10752")

#: Bounds of the posterior's log variance, as the authors have them: exp of it stays finite.
LEAST, MOST = -30.0, 20.0


@component("autoencoder_kl", kind="model", renamed={"picture": "resolution"})
class AutoencoderKL(nn.Module):
    """A variational autoencoder from images, "batch height width channels", to smaller images, and back.

    Height and width may be any multiples of 2 to the number of levels less 1.

    Attributes:
      resolution: resolution in training; others are accepted too.
      channels: 1 for grey, 3 for colour.
      latent: channels of z.
      widths: channels of each level; from one to the next, height and width are halved.
      units: residual blocks of a level of the encoder; the decoder has one more.
      groups: of the group norms, a divisor of all widths.
      attention: levels, counted from 0, with attention after each residual block.
      mid_attention: whether there is attention where the resolution is lowest.
      moments_convolution: whether a 1 x 1 convolution follows the encoder.
      latent_convolution: whether a 1 x 1 convolution precedes the decoder.
      scale: factor of z for a diffusion model; not applied here.
      shift: subtracted from z before that.
      channel_mean: subtracted from z instead, of each channel (Playground 2.5, 2402.17245); None is `shift` for all.
      channel_std: of each channel, which z is then divided by too; None is 1 for all.
      variance: of a pixel given z, in the likelihood that `draws` gives.
      dtype: of the computation; the likelihood and the statistics are at least float32.
      parameter_dtype: of the parameters.
      facts: the checkpoint's own, where the module was loaded from one.
    """

    resolution: int = 512
    channels: int = 3
    latent: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    units: int = 2
    groups: int = 32
    attention: tuple[Count, ...] = ()
    mid_attention: bool = True
    moments_convolution: bool = True
    latent_convolution: bool = True
    scale: float = 0.18215
    shift: Signed = 0.0
    variance: float = 1.0
    channel_mean: tuple[Signed, ...] | None = None
    channel_std: tuple[float, ...] | None = None
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    facts: CheckpointFacts | None = facts_field()

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("channels", "latent", "units")}
        check_levels(self.resolution, sizes, self.widths, self.groups, self.attention)
        for name in ("scale", "variance"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; expected a number above 0, such as 1")
        for name in ("channel_mean", "channel_std"):
            given = getattr(self, name)
            if given is not None and (len(given) != self.latent or (name == "channel_std" and min(given) <= 0)):
                above = "" if name == "channel_mean" else " above 0"
                raise UsageError(f"{name} is {given}; expected {self.latent} numbers{above}, one a channel, or none")
        super().__post_init__()

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        shared = {"widths": self.widths, "units": self.units, "groups": self.groups, "attention": self.attention}
        shared |= {"mid_attention": self.mid_attention} | dtypes
        self.encoder = LatentEncoder(2 * self.latent, **shared)
        if self.moments_convolution:
            self.moments = convolution(2 * self.latent, 1, 2 * self.latent, **dtypes)
        if self.latent_convolution:
            self.from_latent = convolution(self.latent, 1, self.latent, **dtypes)
        self.decoder = LatentDecoder(self.channels, **shared)

    @property
    def factor(self) -> int:
        """Pixels of an image side for one of z."""
        return 2 ** (len(self.widths) - 1)

    @property
    def likelihood(self) -> str:
        """Of pixels given z: normal."""
        return "gaussian"

    def latent_shape(self, shape: Any) -> tuple[int, ...]:
        """The shape of z, "h w latent", for images of `shape`, "height width channels"."""
        return (shape[0] // self.factor, shape[1] // self.factor, self.latent)

    def encode(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch h w latent"], Float[Array, "batch h w latent"]]:
        """Mean and log variance of q(z | x); the latter is clipped to [-30, 20].

        Raises:
          UsageError: images of another number of channels, or of sides that can't be halved often enough.
        """
        self.check(x.shape[1:])
        moments = self.encoder(x)
        if self.moments_convolution:
            moments = self.moments(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, LEAST, MOST)

    def decode(self, z: Float[Array, "*batch h w latent"]) -> Float[Array, "*batch height width channels"]:
        """The image decoded from z, as sampled from the posterior: neither scaled nor shifted."""
        flat = z.reshape(-1, *z.shape[-3:])
        if self.latent_convolution:
            flat = self.from_latent(flat)
        x = self.decoder(flat)
        return x.reshape(*z.shape[:-3], *x.shape[1:])

    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> tuple[
        Float[Array, "batch height width channels"], Float[Array, "batch h w latent"], Float[Array, "batch h w latent"]
    ]:
        """The reconstruction from the posterior's mean; mean and log of the variance of the posterior."""
        mean, log_variance = self.encode(x)
        return self.decode(mean), mean, log_variance

    def draws(
        self,
        x: Float[Array, "batch height width channels"],
        noise: Float[Array, "draws batch h w latent"],
        train: bool = False,
    ) -> tuple[
        Float[Array, "draws batch"],
        Float[Array, "draws batch h w latent"],
        Float[Array, "batch h w latent"],
        Float[Array, "batch h w latent"],
    ]:
        """log p(x | z) in nats for samples z of the posterior; z; mean and log of the variance of the posterior.

        Args:
          x: images.
          noise: standard normal, reparameterised into the samples.
        """
        mean, log_variance = self.encode(x)
        wide = jnp.promote_types(mean.dtype, jnp.float32)
        mean, log_variance = mean.astype(wide), log_variance.astype(wide)
        z = draw_gaussian(noise.astype(wide), mean, log_variance)
        pixels, decoded = x.reshape(len(x), -1).astype(wide), self.decode(z).astype(wide)
        spread = jnp.log(jnp.asarray(self.variance, wide))
        likely = gaussian_log_density(pixels, decoded.reshape(*decoded.shape[:2], -1), spread)
        return likely, z, mean, log_variance

    def check(self, shape: Any) -> None:
        """Refuses images that the model can't take.

        Raises:
          UsageError: `shape` ("height width channels") has another number of channels, or sides that can't be halved.
        """
        check_sides(self.factor, self.channels, shape)


_SHARED = {
    "family": "autoencoder",
    "objective": "variational",
    "paper": PAPER,
    "architecture": "autoencoder-kl",
    "shrink": {"resolution": 8, "widths": (8, 12), "units": 1, "groups": 2},
    "reference": "diffusers AutoencoderKL: moments, reconstruction, gradients; the count is of its model",
    "departures": (
        "Trained by the objective variational with Gaussian pixels of a given variance; the published models are "
        "trained with an absolute and a perceptual error and a discriminator, which need networks of their own.",
        "The latents are not rescaled in the model; scale and shift record the constants for the diffusion model that "
        "uses them.",
        "autoencoder-kl-flux has no paper: its sizes are those of the released configuration.",
    ),
    "difference": 1.7e-6,
    "no_gradient": {"key/bias": "the same term for every key; softmax does not change with it"},
}


@register("autoencoder-kl", inputs=images(512), parameters=83_653_863, **_SHARED)
def autoencoder_kl() -> AutoencoderKL:
    """Stable Diffusion 1 and 2's (kl-f8): 8 x 8 pixels become 4 numbers."""
    return AutoencoderKL()


@register("autoencoder-kl-f4", inputs=images(256), parameters=55_312_063, **_SHARED)
def autoencoder_kl_f4() -> AutoencoderKL:
    """The paper's kl-f4: 4 x 4 pixels become 3 numbers."""
    return AutoencoderKL(resolution=256, latent=3, widths=(128, 256, 512), scale=1.0)


@register(
    "autoencoder-kl-f16",
    inputs=images(256),
    parameters=69_610_963,
    **_SHARED | {"shrink": _SHARED["shrink"] | {"attention": (1,)}},
)
def autoencoder_kl_f16() -> AutoencoderKL:
    """The paper's kl-f16: 16 x 16 pixels become 16 numbers, with attention on the last level."""
    return AutoencoderKL(resolution=256, latent=16, widths=(128, 128, 256, 256, 512), attention=(4,), scale=1.0)


@register("autoencoder-kl-flux", inputs=images(1024), parameters=83_819_683, **_SHARED)
def autoencoder_kl_flux() -> AutoencoderKL:
    """FLUX.1's: 16 channels of latents, and no 1 x 1 convolutions around them."""
    return AutoencoderKL(
        resolution=1024, latent=16, moments_convolution=False, latent_convolution=False, scale=0.3611, shift=0.1159
    )
