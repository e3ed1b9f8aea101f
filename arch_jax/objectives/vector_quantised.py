"""Reconstruction through a codebook."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.reconstructions import Reconstructions
from arch_jax.inputs import calls
from arch_jax.objectives.autoencode import check_images
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.losses import weighted
from arch_jax.ops.vector_quantisation import perplexity
from arch_jax.ranges import Count
from arch_jax.sampling.reconstruct import Reconstruct


@component("vector_quantised", kind="objective", renamed={"show_pictures": "show_images"})
@dataclasses.dataclass(frozen=True)
class VectorQuantised(ObjectiveBase):
    """|x - reconstruction|^2 / variance + commitment |z_e - sg(e)|^2, means over pixels and over codes' numbers.

    van den Oord et al. 2017, 1711.00937, equation 3; where the codes are parameters, with |sg(z_e) - e|^2 too.

    Attributes:
      model: the autoencoder; filled in by the experiment.
      commitment: beta, the price of being away from a code.
      variance: of the data's pixels, which makes the first term comparable between data sets.
      show_images: validation images in the default figure.
    """

    commitment: float = 0.25
    variance: float = 1.0
    show_images: Count = 12

    unit: ClassVar[str] = "of the pixels' variance"

    def __post_init__(self) -> None:
        if not self.variance > 0:
            raise UsageError(f"variance is {self.variance}; expected a number above 0")
        if not self.commitment >= 0:
            raise UsageError(f"commitment is {self.commitment}; expected a number of at least 0, such as 0.25")

    #: Above the figure of reconstructions.
    reconstruction_title: ClassVar[str] = ""

    @property
    def sampler(self) -> Reconstruct:
        """Reconstructions of validation images."""
        return Reconstruct()

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Images, their codes and their reconstructions."""
        return (Reconstructions(self.show_images),)

    def arguments(self, batch: Batch) -> tuple:
        return calls.image_model(batch)

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        outputs, updates = self.apply(variables, batch["images"], key=key, method="quantised")
        metrics = self._terms(outputs, batch)
        return metrics["loss"], (metrics, updates)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """The loss, the reconstruction's error alone, and the perplexity of a batch's codes."""
        return self._terms(self.model.apply(variables, batch["images"], method="quantised"), batch)

    def _terms(self, outputs: tuple, batch: Batch) -> dict[str, Pair]:
        made, encoded, nearest, chosen = outputs
        wide = jnp.promote_types(made.dtype, jnp.float32)
        mean = lambda x: jnp.mean(x.astype(wide).reshape(len(x), -1), axis=-1)
        stop = jax.lax.stop_gradient
        error = mean(jnp.square(batch["images"] - made)) / self.variance
        each = error + self.commitment * mean(jnp.square(encoded - stop(nearest)))
        if self.model.average is None:
            each = each + mean(jnp.square(stop(encoded) - nearest))
        total = jnp.sum(batch["weights"].astype(wide))
        pair = lambda x: weighted(x, batch["weights"])
        return {
            "loss": pair(each),
            "reconstruction": pair(error),
            "perplexity": (perplexity(chosen, self.model.codes) * total, total),
        }

    def check(self, data: Any) -> None:
        """The images must be of the shape that the model takes."""
        check_images(data, self.model, "vector_quantised")

    def reconstructions(self, variables: Any, examples: Any, labels: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        """Images, the indices of their codes as grey values, and their reconstructions."""
        made, _, _, chosen = self.outputs(variables, examples, method="quantised")
        codes = np.asarray(chosen)[..., None] / max(1, self.model.codes - 1)
        return {"original": examples, "codes": codes, "reconstruction": made}
