"""The variational autoencoder (Kingma & Welling 2014, 1312.6114) and its conditional form (Sohn et al. 2015).

An encoder gives the mean and the variance of q(z | x), normal with independent components, and a decoder p(x | z); the
prior p(z) is standard normal. Minimised is minus the evidence lower bound (equation 3),

    -L(x) = KL(q(z | x) || p(z)) - E_q log p(x | z)

by the objective "variational", which also has beta-VAE (Higgins et al. 2017) and importance weighting (Burda et al.
2016, 1509.00519). In the conditional form encoder and decoder see the image's class too.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.inputs import images, labelled_images
from arch_jax.models.autoencoder.convolutional import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    check_resolution,
    check_shape,
)
from arch_jax.ops.latents import bernoulli_log_likelihood, draw_gaussian, gaussian_log_density
from arch_jax.registry import Paper, register

PAPER = Paper("Auto-Encoding Variational Bayes", "Kingma & Welling", 2014, "1312.6114")
CONDITIONAL = Paper(
    "Learning Structured Output Representation Using Deep Conditional Generative Models",
    "Sohn et al.",
    2015,
    url="https://papers.nips.cc/paper/5775",
)


@component("vae", kind="model", renamed={"picture": "resolution"})
class VAE(nn.Module):
    """A variational autoencoder on images, "batch height width channels".

    Attributes:
      resolution: resolution.
      channels: 1 for grey, 3 for colour.
      latent: components of z.
      hidden: width of the dense layers of the encoder; the decoder has them in reverse order.
      widths: channels of the convolutions in front of them, each of which halves the image.
      activation: between layers.
      likelihood: p(x | z): "bernoulli" for pixels in [0, 1], or "gaussian" with one variance for all pixels, a
        parameter that starts at 1.
      classes: number of classes in the conditional form; None for no condition.
      dtype: of the computation; the posterior and the likelihood are at least float32.
      parameter_dtype: of the parameters.
    """

    resolution: int = 28
    channels: int = 1
    latent: int = 20
    hidden: tuple[int, ...] = (500,)
    widths: tuple[int, ...] = ()
    activation: str = "tanh"
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    classes: int | None = None
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_shape(self.resolution, self.channels, self.widths)
        if self.classes is not None and self.classes < 2:
            raise UsageError(f"classes is {self.classes}; expected at least 2, or none")
        super().__post_init__()

    def setup(self) -> None:
        shared = {"widths": self.widths, "hidden": self.hidden, "activation": self.activation, "classes": self.classes}
        shared |= {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        self.encoder = ConvolutionalEncoder(2 * self.latent, **shared)
        self.decoder = ConvolutionalDecoder(self.resolution, self.channels, **shared)
        if self.likelihood == "gaussian":
            self.log_variance = self.param("log_variance", nn.initializers.zeros, (), self.parameter_dtype)

    def latent_shape(self, shape: Any) -> tuple[int, ...]:
        """The shape of z, ("latent",), for images of `shape`, "height width channels"."""
        return (self.latent,)

    def encode(
        self, x: Float[Array, "batch height width channels"], condition: Any = None
    ) -> tuple[Float[Array, "batch latent"], Float[Array, "batch latent"]]:
        """Mean and log of the variance of q(z | x).

        Args:
          x: images.
          condition: the class of each, where there are classes.

        Raises:
          UsageError: images of another shape; a condition without classes, or classes without a condition.
        """
        self.check(x.shape[1:])
        mean, log_variance = jnp.split(self.encoder(x, condition), 2, axis=-1)
        return mean, log_variance

    def decode(
        self, z: Float[Array, "*batch latent"], condition: Any = None
    ) -> Float[Array, "*batch height width channels"]:
        """The mean of p(x | z): for "bernoulli", probabilities."""
        decoded = self.decoder(z, condition)
        return nn.sigmoid(decoded) if self.likelihood == "bernoulli" else decoded

    def __call__(
        self, x: Float[Array, "batch height width channels"], condition: Any = None, train: bool = False
    ) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch latent"], Float[Array, "batch latent"]]:
        """The reconstruction from the posterior's mean; mean and log of the variance of the posterior."""
        mean, log_variance = self.encode(x, condition)
        return self.decode(mean, condition), mean, log_variance

    def draws(
        self,
        x: Float[Array, "batch height width channels"],
        noise: Float[Array, "draws batch latent"],
        condition: Any = None,
        train: bool = False,
    ) -> tuple[
        Float[Array, "draws batch"],
        Float[Array, "draws batch latent"],
        Float[Array, "batch latent"],
        Float[Array, "batch latent"],
    ]:
        """log p(x | z) in nats for samples z of the posterior; z; mean and log of the variance of the posterior.

        Args:
          x: images; in [0, 1] for "bernoulli".
          noise: standard normal, reparameterised into the samples.
          condition: the class of each image, where there are classes.
        """
        mean, log_variance = self.encode(x, condition)
        wide = jnp.promote_types(mean.dtype, jnp.float32)
        mean, log_variance = mean.astype(wide), log_variance.astype(wide)
        z = draw_gaussian(noise.astype(wide), mean, log_variance)
        decoded = self.decoder(z, condition).astype(wide)
        pixels, decoded = x.reshape(len(x), -1).astype(wide), decoded.reshape(*z.shape[:-1], -1)
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(pixels, decoded), z, mean, log_variance
        return gaussian_log_density(pixels, decoded, self.log_variance.astype(wide)), z, mean, log_variance

    def check(self, shape: Any) -> None:
        """Refuses images of another shape.

        Raises:
          UsageError: `shape` ("height width channels") is another.
        """
        check_resolution(self.resolution, self.channels, shape)


_SHARED = {"family": "autoencoder", "objective": "variational"}
_REFERENCE = "a linear one reaches the likelihood of probabilistic principal components; the bound by integration"


@register(
    "vae",
    paper=PAPER,
    inputs=images(28, 1),
    shrink={"resolution": 8, "latent": 3, "hidden": (6,)},
    reference=_REFERENCE,
    departures=(
        "Glorot's initializer; the paper draws all weights from N(0, 0.01). Adaptive optimizers start faster from it.",
    ),
    reproduces="the bound on Fashion-MNIST (vae_fashion)",
    **_SHARED,
)
def vae() -> VAE:
    """500 tanh units on each side and 20 latent variables: the paper's for MNIST (section 5)."""
    return VAE()


@register(
    "vae-convolutional",
    paper=PAPER,
    inputs=images(28, 1),
    shrink={"resolution": 8, "latent": 3, "widths": (4, 6)},
    reference=_REFERENCE,
    departures=(
        "Convolutions before the dense layers and one learned variance of all pixels; the paper has one hidden layer "
        "and a variance for each pixel. It is the customary form for images.",
    ),
    **_SHARED,
)
def vae_convolutional() -> VAE:
    """Two convolutions of stride 2 and back, Gaussian pixels with one learned variance."""
    return VAE(widths=(32, 64), hidden=(), activation="relu", likelihood="gaussian")


@register(
    "cvae",
    paper=CONDITIONAL,
    inputs=labelled_images(28, 1),
    shrink={"resolution": 8, "latent": 3, "hidden": (6,), "classes": 3},
    reference=_REFERENCE,
    departures=(
        "The condition is a class, and the prior of z does not depend on it; the paper conditions on an image and "
        "learns the prior. With one standard normal prior, digits of every class can be drawn from one z.",
        "Dense layers of the VAE for MNIST; the paper has convolutional networks for images.",
    ),
    **_SHARED,
)
def cvae() -> VAE:
    """The VAE of 500 units, with the class of the digit given to both sides."""
    return VAE(classes=10)
