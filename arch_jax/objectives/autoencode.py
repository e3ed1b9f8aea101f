"""Reconstruction through a code, from clean or corrupted examples, with or without a price on activity.

Examples are images ("images") or vectors ("x"). Where the data says how it was made, what the model found of it is
measured and drawn: the score of a mixture of Gaussians, or the atoms of a dictionary.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.evaluation.ground_truth import recovered, score_error
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.ground_truth import DictionaryAtoms, ScoreField
from arch_jax.figures.reconstructions import Reconstructions
from arch_jax.inputs import calls
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.latents import bernoulli_log_likelihood, bernoulli_sparsity
from arch_jax.ops.losses import weighted
from arch_jax.protocols import check_example, point_features
from arch_jax.ranges import Count
from arch_jax.sampling.reconstruct import Reconstruct


def check_images(data: Any, model: Any, name: str) -> None:
    """Refuses data without images, or of another shape than the model's.

    Raises:
      UsageError: so it is.
    """
    if "images" not in data.shapes:
        raise UsageError(
            f"the objective {name!r} takes images, and the data has {', '.join(data.shapes)}; "
            "expected images, such as arch_jax.Images()"
        )
    check_example(model, data.shapes["images"][0][1:])


@component("autoencode", kind="objective", renamed={"show_pictures": "show_images"})
@dataclasses.dataclass(frozen=True)
class Autoencode(ObjectiveBase):
    """The error of the reconstruction, summed over an example's numbers; validation is of clean examples.

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
      show_images: validation images in the default figure.

    With `centres` and `std` in a validation batch, and noise, "score_error" says how far (r(x) - x) / noise^2 is from
    the score of the noisy mixture (`planted.score_error`); with `atoms`, "recovered" is the share of them that is a
    row of the decoder, and "cosine" how near the nearest row is (`planted.recovered`).
    """

    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    noise: float = 0.0
    masked: float = 0.0
    sparsity: float | None = None
    sparsity_weight: float = 1.0
    activity_weight: float = 0.0
    show_images: Count = 12

    unit: ClassVar[str] = "an example"

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise UsageError(f"noise is {self.noise}; expected a standard deviation of at least 0")
        if not 0 <= self.masked < 1:
            raise UsageError(f"masked is {self.masked}; expected a share from 0 to below 1, such as 0.25")

    #: Above the figure of reconstructions.
    reconstruction_title: ClassVar[str] = ""

    @property
    def sampler(self) -> Reconstruct:
        """Reconstructions of validation examples."""
        return Reconstruct()

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Reconstructions of images; of data that says how it was made, what the model found of it."""
        return Reconstructions(self.show_images), ScoreField(), DictionaryAtoms()

    def arguments(self, batch: Batch) -> tuple:
        return calls.vector_model(batch)

    @staticmethod
    def examples(batch: Batch) -> Any:
        """The examples of a batch."""
        return batch["x"] if "x" in batch else batch["images"]

    def corrupted(self, examples: jax.Array, key: jax.Array) -> jax.Array:
        """The examples as the model is given them in training."""
        noise, mask = jax.random.split(key)
        if self.noise:
            examples = examples + self.noise * jax.random.normal(noise, examples.shape, examples.dtype)
        if self.masked:
            examples = jnp.where(jax.random.bernoulli(mask, self.masked, examples.shape), 0, examples)
        return examples

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        module, inputs = self.model, self.corrupted(self.examples(batch), key)
        code = module.apply(variables, inputs, method="encode")
        reconstruction = module.apply(variables, code, method="decode")
        total, weight = self._error(reconstruction, batch)
        metrics = {"reconstruction": (total, weight)}
        if self.sparsity is not None:
            price = jnp.sum(bernoulli_sparsity(code, self.sparsity))
            total = total + self.sparsity_weight * price * weight
            metrics["sparsity"] = (price * weight, weight)
        if self.activity_weight:
            price, _ = weighted(jnp.abs(code).reshape(len(code), -1).sum(-1), _weights(batch))
            total = total + self.activity_weight * price
            metrics["activity"] = (price, weight)
        return (total, weight), ({"loss": (total, weight), **metrics}, {})

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """The error of a clean example ("loss"), and what was found of how the data was made."""
        x, apply = self.examples(batch), lambda x: self.model.apply(variables, x)
        metrics = {"loss": self._error(apply(x), batch)}
        if "centres" in batch and self.noise:
            noisy = self.corrupted(x, jax.random.key(0))
            metrics["score_error"] = score_error(
                apply(noisy) - noisy, noisy, self.noise, batch["centres"], batch["std"]
            )
        if "atoms" in batch:
            metrics |= recovered(self.model.apply(variables, method="atoms"), batch["atoms"])
        return metrics

    def _error(self, reconstruction: jax.Array, batch: Batch) -> Pair:
        wide = jnp.promote_types(reconstruction.dtype, jnp.float32)
        flat = lambda x: x.reshape(len(x), -1).astype(wide)
        x, y = flat(self.examples(batch)), flat(reconstruction)
        bernoulli = self.likelihood == "bernoulli"
        each = -bernoulli_log_likelihood(x, y) if bernoulli else jnp.sum(jnp.square(x - y), axis=-1)
        return weighted(each, _weights(batch))

    def check(self, data: Any) -> None:
        """The examples must be of the shape that the model takes; and in [0, 1], where they are probabilities."""
        if "x" in data.shapes:
            self._check_vectors(data)
            return
        check_images(data, self.model, "autoencode")
        if self.likelihood == "bernoulli" and (data.low < 0 or data.high > 1):
            raise UsageError(
                f"pixels go from {data.low} to {data.high}, and likelihood 'bernoulli' takes 0 to 1; "
                "set data.low=0 and data.high=1, or objective.likelihood=gaussian"
            )

    def _check_vectors(self, data: Any) -> None:
        if point_features(self.model) is None:
            raise UsageError(
                f"the model takes images, and the data has {', '.join(data.shapes)}; expected images, such as "
                "arch_jax.Images(), or a model of vectors, such as autoencoder-denoising"
            )
        self.model.check(data.shapes["x"][0][1:])
        if self.likelihood == "bernoulli":
            raise UsageError("likelihood is 'bernoulli', which is for pixels from 0 to 1; expected 'gaussian'")

    def reconstructions(self, variables: Any, examples: Any, labels: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        """Examples, the corrupted ones that the model is given, and their reconstructions."""
        given = self.corrupted(jnp.asarray(examples), key)
        made = self.outputs(variables, given)
        made = jax.nn.sigmoid(made) if self.likelihood == "bernoulli" else made
        corrupted = {"corrupted": given} if self.noise or self.masked else {}
        return {"original": examples, **corrupted, "reconstruction": made}


def _weights(batch: Batch) -> Any:
    """Of each example; data that is drawn afresh has no padding, and no weights."""
    return batch["weights"] if "weights" in batch else jnp.ones(len(Autoencode.examples(batch)))
