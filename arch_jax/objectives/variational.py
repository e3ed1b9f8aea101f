"""The evidence lower bound of a variational autoencoder, and the importance-weighted one."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.image_grid import picture_grid, validation_pictures
from arch_jax.objectives.autoencode import check_images
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.latents import (
    gaussian_kl,
    gaussian_log_density,
    importance_bound,
    linear_interpolation,
    spherical_interpolation,
)


@component("variational", kind="objective")
@dataclasses.dataclass(frozen=True)
class Variational(ObjectiveBase):
    """Minus a lower bound on log p(x), in nats a picture.

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
      show_pictures: how many of the validation pictures `show` draws.
    """

    bound: Literal["evidence", "importance"] = "evidence"
    draws: int = 1
    beta: float = 1.0
    binarised: bool = False
    evaluation_draws: int = 1
    show_pictures: int = 12

    def __post_init__(self) -> None:
        for name in ("draws", "evaluation_draws"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.beta >= 0:
            raise UsageError(f"beta is {self.beta}; expected a number of at least 0, such as 4")
        if self.bound == "importance" and self.beta != 1:
            raise UsageError(f"beta is {self.beta} with the bound 'importance', which has none; expected 1")

    def arguments(self, batch: Batch) -> tuple:
        return (batch["images"], *self._condition(batch))

    def _condition(self, batch: Batch) -> tuple:
        return () if getattr(self.model, "classes", None) is None else (batch["labels"],)

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        metrics = self._terms(variables, batch, key, self.draws, self.beta)
        return metrics["loss"], (metrics, {})

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """Nats a picture ("loss"), and its parts: the divergence ("kl") and -log p(x | z) ("reconstruction")."""
        return self._terms(variables, batch, jax.random.key(0), self.evaluation_draws, 1.0)

    def _terms(self, variables: Any, batch: Batch, key: jax.Array, draws: int, beta: float) -> dict[str, Pair]:
        drawing, pixels = jax.random.split(key)
        images = batch["images"]
        if self.binarised:
            images = jax.random.bernoulli(pixels, images).astype(images.dtype)
        noise = jax.random.normal(drawing, (draws, len(images), *self.model.latent_shape(images.shape[1:])))
        condition = self._condition(batch)
        likely, z, mean, log_variance = self.model.apply(variables, images, noise, *condition, method="draws")
        z = z.reshape(*z.shape[:2], -1)  # a code may be a picture of numbers
        mean, log_variance = (x.reshape(len(x), -1) for x in (mean, log_variance))
        kl, reconstruction = gaussian_kl(mean, log_variance), -likely.mean(0)
        if self.bound == "evidence":
            each = reconstruction + beta * kl
        else:
            zero = jnp.zeros((), z.dtype)
            prior, posterior = gaussian_log_density(z, zero, zero), gaussian_log_density(z, mean, log_variance)
            each = -importance_bound(likely + prior - posterior)
        weights = batch["weights"].astype(each.dtype)
        total = jnp.sum(weights)
        pair = lambda x: (jnp.sum(jnp.where(weights > 0, x * weights, 0)), total)
        return {"loss": pair(each), "kl": pair(kl), "reconstruction": pair(reconstruction)}

    def check(self, data: Any) -> None:
        """The pictures must be of the shape that the model takes, in [0, 1] where they are probabilities."""
        check_images(data, self.model, "variational")
        if (self.model.likelihood == "bernoulli" or self.binarised) and (data.low < 0 or data.high > 1):
            raise UsageError(
                f"pixels go from {data.low} to {data.high}, and likelihood 'bernoulli' takes 0 to 1; "
                "set data.low=0 and data.high=1, or model.likelihood=gaussian"
            )
        classes = getattr(self.model, "classes", None)
        if classes is not None and data.classes > classes:
            raise UsageError(
                f"model.classes is {classes}, but the labels go up to {data.classes - 1}; "
                f"set model.classes={data.classes}"
            )

    def show(self, variables: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        """Reconstructions; draws from the prior; ways between two codes; and, with two components, the latent map."""
        pictures, labels = validation_pictures(data, self.show_pictures)
        count, classes = len(pictures), getattr(self.model, "classes", None)
        given = (jnp.asarray(labels),) if classes else ()
        made, mean, _ = self.outputs(variables, jnp.asarray(pictures), *given)
        code = mean.shape[1:]
        decode = lambda z, *c: self.outputs(variables, z, *c, method="decode")
        scaled = lambda x: (np.asarray(x) - data.low) / (data.high - data.low)
        shown = {"reconstructions": picture_grid({"pictures": scaled(pictures), "made of them": scaled(made)})}
        names = [str(c) for c in range(classes)] if classes else ["z", "z'", "z''", "z'''"]
        rows = {}
        for number, name in enumerate(names):
            z = jax.random.normal(jax.random.fold_in(key, number), (count, *code))
            rows[name] = scaled(decode(z, *((jnp.full(count, number),) if classes else ())))
        shown["samples"] = picture_grid(rows, "drawn from the prior" + (", class by class" if classes else ""))
        share = jnp.linspace(0, 1, count)
        ways = {}
        for start in range(0, min(count - 1, 4), 2):
            for name, way in (("straight", linear_interpolation), ("on a circle", spherical_interpolation)):
                condition = (jnp.full(count, labels[start]),) if classes else ()
                z = way(mean[start].ravel(), mean[start + 1].ravel(), share).reshape(count, *code)
                ways[f"{name} {start // 2 + 1}"] = scaled(decode(z, *condition))
        shown["interpolations"] = picture_grid(ways, "from one code to another")
        if code == (2,) and not classes:
            shown["latent_map"] = self._map(decode, scaled)
        return shown

    def _map(self, decode: Any, scaled: Any) -> Any:
        """Pictures at the quantiles of the prior's two components (1312.6114, figure 4)."""
        from jax.scipy.stats import norm

        places = norm.ppf(jnp.linspace(0.03, 0.97, 15))
        rows = {f"{float(y):.1f}": scaled(decode(jnp.stack([places, jnp.full(15, y)], -1))) for y in places[::-1]}
        return picture_grid(rows, "the latent plane")
