"""Classification of images: the cross-entropy of each image's class, or the perceptron's rule."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError, unknown
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.predictions import Predictions
from arch_jax.inputs import calls
from arch_jax.layers.sowing import outputs_of
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.losses import cross_entropy, perceptron, weighted
from arch_jax.protocols import check_example, class_count
from arch_jax.ranges import Count, Share


@component("classify", kind="objective", renamed={"show_pictures": "show_images"})
@dataclasses.dataclass(frozen=True)
class Classify(ObjectiveBase):
    """-log p(class | image), in nats, over the images that have weight; or another criterion of its scores.

    Attributes:
      model: the classifier; filled in by the experiment.
      label_smoothing: share of each target spread evenly over the classes, in training (1512.00567, section 7).
      rubbish: j of LeNet-5's criterion (LeCun et al. 1998, equation 9), at least 0: a class of logit -j that no image
        has, in training. While the right class's logit is below -j it is pulled up, whatever the others are. None: no
        such class.
      criterion: "cross_entropy", or "perceptron": by how much another class's score is above the right one's, whose
        gradient descent, one image a step, is Rosenblatt's rule (`ops.losses.perceptron`).
      auxiliary_weight: what the losses of a model's auxiliary classifiers, where it has them, count in training
        (Szegedy et al. 2015, 1409.4842, section 5).
      show_images: validation images in the default figure.
    """

    label_smoothing: Share = 0.0
    rubbish: float | None = None
    criterion: Literal["cross_entropy", "perceptron"] = "cross_entropy"
    auxiliary_weight: float = 0.3
    show_images: Count = 48

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise UsageError(f"label_smoothing is {self.label_smoothing}; expected a number from 0 to 1, such as 0.1")
        if self.rubbish is not None and not self.rubbish >= 0:
            raise UsageError(f"rubbish is {self.rubbish}; expected a number of at least 0, or none")
        if not self.auxiliary_weight >= 0:
            raise UsageError(f"auxiliary_weight is {self.auxiliary_weight}; expected a number of at least 0")
        if self.criterion not in ("cross_entropy", "perceptron"):
            raise unknown("criterion", self.criterion, ("cross_entropy", "perceptron"))
        if self.criterion == "perceptron" and (self.label_smoothing or self.rubbish is not None):
            raise UsageError(
                f"criterion 'perceptron' has no probabilities, but label_smoothing is {self.label_smoothing} and "
                f"rubbish is {self.rubbish}; expected 0 and none"
            )

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Validation images under their predicted classes."""
        return (Predictions(self.show_images),)

    def arguments(self, batch: Batch) -> tuple:
        return calls.image_model(batch)

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        logits, updates = self.apply(variables, batch["images"], key=key)
        each = self._each(logits, batch)
        for other in outputs_of(updates.get("outputs", {})):
            each = each + self.auxiliary_weight * self._each(other, batch)
        metrics = self._metrics(each, logits, batch)
        return metrics["loss"], (metrics, updates)

    def _each(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """Per-image loss of one classifier; for mixup images, weighted over both labels."""
        each = self._of(logits, batch["labels"])
        if "other_labels" in batch:
            return batch["shares"] * each + (1 - batch["shares"]) * self._of(logits, batch["other_labels"])
        return each

    def _of(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        if self.criterion == "perceptron":
            return perceptron(logits, labels)
        if self.rubbish is not None:
            logits = jnp.concatenate([logits, jnp.full((len(logits), 1), -self.rubbish, logits.dtype)], axis=1)
        return cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """The criterion ("loss", nats a image), and the share of images whose class is likeliest ("accuracy")."""
        logits = self.model.apply(variables, batch["images"])
        criterion = perceptron if self.criterion == "perceptron" else cross_entropy
        return self._metrics(criterion(logits, batch["labels"]), logits, batch)

    def _metrics(self, nats: jax.Array, logits: jax.Array, batch: Batch) -> dict[str, Pair]:
        right = (jnp.argmax(logits, axis=-1) == batch["labels"]).astype(nats.dtype)
        return {"loss": weighted(nats, batch["weights"]), "accuracy": weighted(right, batch["weights"])}

    def check(self, data: Any) -> None:
        """The labels must be among the model's classes, and the images of the size that it takes."""
        classes = data.classes
        if classes is None or "images" not in data.shapes:
            raise UsageError(
                f"the objective 'classify' takes labelled images, and the data has {', '.join(data.shapes)}; "
                "expected images and labels, such as arch_jax.Images()"
            )
        if class_count(self.model) is None and hasattr(self.model, "classes"):
            raise UsageError(f"model.classes is none, so the model gives features; set model.classes={classes}")
        if classes > self.model.classes:
            field = "classes" if "classes" in self.model.__dataclass_fields__ else "outputs"
            raise UsageError(
                f"model.{field} is {self.model.classes}, but the labels go up to {classes - 1}; "
                f"set model.{field}={classes}"
            )
        check_example(self.model, data.shapes["images"][0][1:])
