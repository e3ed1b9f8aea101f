"""The evidence lower bound of a variational autoencoder, and the importance-weighted one."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.latent_space import Interpolations, LatentMap
from arch_jax.figures.reconstructions import Reconstructions
from arch_jax.figures.samples import Samples
from arch_jax.inputs import calls
from arch_jax.objectives.autoencode import check_images
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.latents import gaussian_kl, gaussian_log_density, importance_bound
from arch_jax.ops.losses import weighted
from arch_jax.protocols import class_count
from arch_jax.ranges import Count
from arch_jax.sampling.latent_prior import LatentPrior


@component("variational", kind="objective", renamed={"show_pictures": "show_images"})
@dataclasses.dataclass(frozen=True)
class Variational(ObjectiveBase):
    """Minus a lower bound on log p(x), in nats a image.

    With k draws z_i from q(z | x):

        evidence     mean_i log p(x | z_i) - beta KL(q(z | x) || p(z))      (Kingma & Welling 2014, 1312.6114, eq. 10)
        importance   log mean_i p(x, z_i) / q(z_i | x)                      (Burda et al. 2016, 1509.00519, eq. 8)

    Attributes:
      model: the autoencoder; filled in by the experiment.
      bound: "evidence" or "importance".
      draws: k, in training.
      beta: of beta-VAE (Higgins et al. 2017); 1 is the evidence lower bound.
      binarised: whether pixels are drawn anew as 0 or 1 with their brightness as probability, in training each time,
        in validation once (Salakhutdinov & Murray 2008; 1509.00519, section 5.1).
      evaluation_draws: k in validation, which takes the same draws each time; the bound there is that of `bound`, with
        beta 1.
      show_images: images in a row of the default figures.
    """

    bound: Literal["evidence", "importance"] = "evidence"
    draws: int = 1
    beta: float = 1.0
    binarised: bool = False
    evaluation_draws: int = 1
    show_images: Count = 12

    def __post_init__(self) -> None:
        for name in ("draws", "evaluation_draws"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.beta >= 0:
            raise UsageError(f"beta is {self.beta}; expected a number of at least 0, such as 4")
        if self.bound == "importance" and self.beta != 1:
            raise UsageError(f"beta is {self.beta} with the bound 'importance', which has none; expected 1")

    #: Above the figure of reconstructions.
    reconstruction_title: ClassVar[str] = ""

    @property
    def sampler(self) -> LatentPrior:
        """Images from the prior."""
        return LatentPrior()

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Reconstructions; samples from the prior; ways between two codes; with two components, the latent map."""
        count = self.show_images
        several = count if self.classes else 4 * count
        return Reconstructions(count), Samples(several), Interpolations(max(2, count)), LatentMap()

    @property
    def classes(self) -> int | None:
        """The classes that the model is conditioned on; None for an unconditional one."""
        return class_count(self.model)

    def arguments(self, batch: Batch) -> tuple:
        return calls.image_model(batch) if self.classes is None else calls.conditional_image_model(batch)

    def _condition(self, batch: Batch) -> tuple:
        return () if self.classes is None else (batch["labels"],)

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        metrics = self._terms(variables, batch, key, self.draws, self.beta)
        return metrics["loss"], (metrics, {})

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """Nats a image ("loss"), and its parts: the divergence ("kl") and -log p(x | z) ("reconstruction")."""
        return self._terms(variables, batch, jax.random.key(0), self.evaluation_draws, 1.0)

    def _terms(self, variables: Any, batch: Batch, key: jax.Array, draws: int, beta: float) -> dict[str, Pair]:
        drawing, pixels = jax.random.split(key)
        images = batch["images"]
        if self.binarised:
            images = jax.random.bernoulli(pixels, images).astype(images.dtype)
        noise = jax.random.normal(drawing, (draws, len(images), *self.model.latent_shape(images.shape[1:])))
        condition = self._condition(batch)
        likely, z, mean, log_variance = self.model.apply(variables, images, noise, *condition, method="draws")
        z = z.reshape(*z.shape[:2], -1)  # a code may be a image of numbers
        mean, log_variance = (x.reshape(len(x), -1) for x in (mean, log_variance))
        kl, reconstruction = gaussian_kl(mean, log_variance), -likely.mean(0)
        if self.bound == "evidence":
            each = reconstruction + beta * kl
        else:
            zero = jnp.zeros((), z.dtype)
            prior, posterior = gaussian_log_density(z, zero, zero), gaussian_log_density(z, mean, log_variance)
            each = -importance_bound(likely + prior - posterior)
        pair = lambda x: weighted(x, batch["weights"])
        return {"loss": pair(each), "kl": pair(kl), "reconstruction": pair(reconstruction)}

    def check(self, data: Any) -> None:
        """The images must be of the shape that the model takes, in [0, 1] where they are probabilities."""
        check_images(data, self.model, "variational")
        if (self.model.likelihood == "bernoulli" or self.binarised) and (data.low < 0 or data.high > 1):
            raise UsageError(
                f"pixels go from {data.low} to {data.high}, and likelihood 'bernoulli' takes 0 to 1; "
                "set data.low=0 and data.high=1, or model.likelihood=gaussian"
            )
        classes = self.classes
        if classes is not None and data.classes > classes:
            raise UsageError(
                f"model.classes is {classes}, but the labels go up to {data.classes - 1}; "
                f"set model.classes={data.classes}"
            )

    def reconstructions(self, variables: Any, examples: Any, labels: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        """Images and their reconstructions from the posterior's mean."""
        given = (jnp.asarray(labels),) if self.classes else ()
        made, _, _ = self.outputs(variables, jnp.asarray(examples), *given)
        return {"original": examples, "reconstruction": made}
