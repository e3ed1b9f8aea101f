"""Classification of noisy images: the classifier that guides a diffusion (2105.05233, section 4 and appendix H)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.predictions import Predictions
from arch_jax.inputs import calls
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.diffusion.processes import Process, VariancePreserving
from arch_jax.ops.diffusion.weightings import TrainingTimes, UniformTimes
from arch_jax.ops.losses import cross_entropy, weighted
from arch_jax.ops.precision import at_least_float32
from arch_jax.protocols import check_example, class_count
from arch_jax.ranges import Count


@component("noisy_classification", kind="objective")
@dataclasses.dataclass(frozen=True)
class NoisyClassification(ObjectiveBase):
    """-log p(class | x_t, t), in nats, with x_t = alpha x_0 + sigma noise (Dhariwal & Nichol 2021, 2105.05233).

    Its gradient by x_t guides a diffusion of the same process (`sampler.classifier`).

    Attributes:
      model: the classifier, which is called with noisy images and times; filled in by the experiment.
      process: alpha and sigma.
      times: density of training times.
      show_images: validation images in the default figure.
    """

    process: Process = VariancePreserving()
    times: TrainingTimes = UniformTimes()
    show_images: Count = 48

    def __post_init__(self) -> None:
        self.times.check(self.process)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Validation images, as clean as those that it is trained on ever are, under their predicted classes."""
        return (Predictions(self.show_images),) if self.show_images else ()

    def arguments(self, batch: Batch) -> tuple:
        """Images, and the time that the batch has, or else the first of the process."""
        if "time" in batch:
            return calls.noisy_classifier(batch)
        images = jnp.asarray(batch["images"])
        return images, self._told(jnp.full(len(images), self.process.first), images)

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        times, noise, dropout = jax.random.split(key, 3)
        clean = at_least_float32(batch["images"])
        time = self.times.draw(self.process, times, len(clean))
        x = self._noisy(clean, time, jax.random.normal(noise, clean.shape, clean.dtype))
        logits, updates = self.apply(variables, x, self._told(time, clean), key=dropout)
        metrics = self._metrics(logits, batch)
        return metrics["loss"], (metrics, updates)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """The loss ("loss") at equally spread times, with the same noise each time, and the share of right classes.

        That share ("accuracy") is of noisy images, many of which are noise alone: it stays far below 1.
        """
        clean = at_least_float32(batch["images"])
        order = jax.random.permutation(jax.random.key(1), len(clean))
        time = self.times.spread(self.process, len(clean))[order]
        x = self._noisy(clean, time, jax.random.normal(jax.random.key(0), clean.shape, clean.dtype))
        return self._metrics(self.model.apply(variables, x, self._told(time, clean)), batch)

    def _noisy(self, clean: jax.Array, time: jax.Array, noise: jax.Array) -> jax.Array:
        """x_t."""
        by_row = lambda part: part.astype(clean.dtype).reshape(-1, *(1,) * (clean.ndim - 1))
        alpha, sigma = map(by_row, self.process.coefficients(time))
        return alpha * clean + sigma * noise

    def _told(self, time: jax.Array, images: jax.Array) -> jax.Array:
        """The numbers that the classifier is told for times of the process."""
        return self.process.conditioning(time).astype(at_least_float32(images).dtype)

    def _metrics(self, logits: jax.Array, batch: Batch) -> dict[str, Pair]:
        nats = cross_entropy(logits, batch["labels"])
        right = (jnp.argmax(logits, axis=-1) == batch["labels"]).astype(nats.dtype)
        return {"loss": weighted(nats, batch["weights"]), "accuracy": weighted(right, batch["weights"])}

    def check(self, data: Any) -> None:
        """The data must be labelled images in [-1, 1] of the classifier's shape, and labels within its classes."""
        if data.classes is None or "images" not in data.shapes:
            raise UsageError(
                f"the objective 'noisy_classification' takes labelled images, and the data has "
                f"{', '.join(data.shapes)}; expected images and labels, such as arch_jax.Images()"
            )
        if (data.low, data.high) != (-1, 1):
            raise UsageError(
                f"pixels go from {data.low:g} to {data.high:g}, and a diffusion takes -1 to 1, about which noise is "
                "symmetric; set data.low=-1 and data.high=1"
            )
        classes = class_count(self.model)
        if classes is None or data.classes > classes:
            raise UsageError(
                f"model.classes is {classes}, but the labels go up to {data.classes - 1}; set "
                f"model.classes={data.classes}"
            )
        check_example(self.model, data.shapes["images"][0][1:])
