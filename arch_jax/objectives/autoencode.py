"""Reconstruction through a code, from clean or corrupted pictures, with or without a price on activity."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.objectives.picture_grid import picture_grid, validation_pictures
from arch_jax.ops.latents import bernoulli_log_likelihood, bernoulli_sparsity


def check_pictures(data: Any, model: Any, name: str) -> None:
    """Refuses data without pictures, or of another shape than the model's.

    Raises:
      UsageError: so it is.
    """
    if "images" not in data.shapes:
        raise UsageError(
            f"the objective {name!r} takes pictures, and the data has {', '.join(data.shapes)}; "
            "expected images, such as arch_jax.Images()"
        )
    if hasattr(model, "check"):
        model.check(data.shapes["images"][0][1:])


@component("autoencode", kind="objective")
@dataclasses.dataclass(frozen=True)
class Autoencode(ObjectiveBase):
    """The error of the reconstruction, summed over the pixels of a picture; validation is of clean pictures.

    Attributes:
      model: the autoencoder; filled in by the experiment.
      likelihood: "gaussian" for the squared error, or "bernoulli" for the cross-entropy of pixels in [0, 1], in nats,
        whose logits the model then gives.
      noise: standard deviation of normal noise on the inputs, in training (Vincent et al. 2010, section 2.3).
      masked: share of the inputs that are set to 0, in training.
      sparsity: share of the time that a unit of the code should be active, in (0, 1), for codes in (0, 1) (Ng 2011);
        none for no price.
      sparsity_weight: price of the divergence from it, in training.
      activity_weight: price of the sum of the code's absolute values, in training.
      show_pictures: how many of the validation pictures `show` draws.
    """

    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    noise: float = 0.0
    masked: float = 0.0
    sparsity: float | None = None
    sparsity_weight: float = 1.0
    activity_weight: float = 0.0
    show_pictures: int = 12

    unit: ClassVar[str] = "a picture"

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise UsageError(f"noise is {self.noise}; expected a standard deviation of at least 0")
        if not 0 <= self.masked < 1:
            raise UsageError(f"masked is {self.masked}; expected a share from 0 to below 1, such as 0.25")

    def arguments(self, batch: Batch) -> tuple:
        return (batch["images"],)

    def corrupted(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """The pictures as the model is given them in training."""
        noise, mask = jax.random.split(key)
        if self.noise:
            images = images + self.noise * jax.random.normal(noise, images.shape, images.dtype)
        if self.masked:
            images = jnp.where(jax.random.bernoulli(mask, self.masked, images.shape), 0, images)
        return images

    def loss(self, player: str, variables: Any, batch: Batch, key: jax.Array) -> tuple[Pair, tuple[dict, dict]]:
        module, inputs = self.model, self.corrupted(batch["images"], key)
        code = module.apply(variables, inputs, method="encode")
        reconstruction = module.apply(variables, code, method="decode")
        total, weight = self._error(reconstruction, batch)
        metrics = {"reconstruction": (total, weight)}
        if self.sparsity is not None:
            price = jnp.sum(bernoulli_sparsity(code, self.sparsity))
            total = total + self.sparsity_weight * price * weight
            metrics["sparsity"] = (price * weight, weight)
        if self.activity_weight:
            price = jnp.sum(jnp.abs(code).reshape(len(code), -1).sum(-1) * batch["weights"])
            total = total + self.activity_weight * price
            metrics["activity"] = (price, weight)
        return (total, weight), ({"loss": (total, weight), **metrics}, {})

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """The error of a clean picture ("loss")."""
        return {"loss": self._error(self.model.apply(variables, batch["images"]), batch)}

    def _error(self, reconstruction: jax.Array, batch: Batch) -> Pair:
        wide = jnp.promote_types(reconstruction.dtype, jnp.float32)
        flat = lambda x: x.reshape(len(x), -1).astype(wide)
        x, y, weights = flat(batch["images"]), flat(reconstruction), batch["weights"].astype(wide)
        bernoulli = self.likelihood == "bernoulli"
        each = -bernoulli_log_likelihood(x, y) if bernoulli else jnp.sum(jnp.square(x - y), axis=-1)
        return jnp.sum(jnp.where(weights > 0, each * weights, 0)), jnp.sum(weights)

    def check(self, data: Any) -> None:
        """The pictures must be of the shape that the model takes; and in [0, 1], where they are probabilities."""
        check_pictures(data, self.model, "autoencode")
        if self.likelihood == "bernoulli" and (data.low < 0 or data.high > 1):
            raise UsageError(
                f"pixels go from {data.low} to {data.high}, and likelihood 'bernoulli' takes 0 to 1; "
                "set data.low=0 and data.high=1, or objective.likelihood=gaussian"
            )

    def show(self, variables: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        """Validation pictures, what is given to the model, and what it makes of it."""
        pictures, _ = validation_pictures(data, self.show_pictures)
        given = self.corrupted(jnp.asarray(pictures), key)
        made = jax.jit(self.model.apply)(variables, given)
        made = jax.nn.sigmoid(made) if self.likelihood == "bernoulli" else made
        scaled = lambda x: (np.asarray(x) - data.low) / (data.high - data.low)
        rows = {"pictures": scaled(pictures)}
        if self.noise or self.masked:
            rows["given"] = scaled(given)
        return {"reconstructions": picture_grid(rows | {"made of them": scaled(made)})}
