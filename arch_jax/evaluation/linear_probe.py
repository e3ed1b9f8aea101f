"""The linear probe: a linear classifier on features that were learned without labels."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.evaluation.base import Measure, fresh
from arch_jax.fields import component

#: Iterations of L-BFGS after which the regression is taken as it is: by then accuracies move in the fourth digit.
_ITERATIONS = 300


@component("linear_probe", kind="measure")
@dataclasses.dataclass(frozen=True)
class LinearProbe(Measure):
    """A linear classifier on an encoder's features, trained and untrained (He et al. 2021, 2111.06377, section 4.1).

    "probe_accuracy" is its accuracy on the validation images, "probe_untrained" that on the same network before
    training, its parameters drawn with another key, and "probe_gain" the difference; nothing where the data has no
    sample of its training images. The model gives features as tokens, by the method `encode`.

    Attributes:
      images: training images that the probe is fitted on, at most.
      features: the class "token", as in the paper, or the "mean" over the patches.
    """

    of_model: ClassVar[tuple[str, ...]] = ("encode",)

    images: int = 10_000
    features: Literal["token", "mean"] = "token"

    def __post_init__(self) -> None:
        if self.images < 2:
            raise UsageError(f"images is {self.images}; expected at least 2")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, float]:
        if data.training_sample is None:
            return {}
        batches = lambda: data.training_sample(self.images)
        untrained = fresh(task, jax.random.key(0), next(iter(batches())))
        features = functools.partial(_features, task.model, self.features)
        trained, before = (
            probe_accuracy(functools.partial(features, v), batches(), data.validation()) for v in (variables, untrained)
        )
        return {"probe_accuracy": trained, "probe_untrained": before, "probe_gain": trained - before}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(model: Any, features: str, variables: Any, images: jax.Array) -> jax.Array:
    """Features of whole images, "batch width"."""
    tokens = model.apply(variables, images, method="encode")
    return tokens[:, 0] if features == "token" else tokens[:, 1:].mean(1)


def probe_accuracy(
    features: Callable[[jax.Array], jax.Array],
    training: Iterable[Mapping[str, Any]],
    validation: Iterable[Mapping[str, Any]],
) -> float:
    """The share of validation images that a linear classifier of their features gets right.

    The classifier is a multinomial logistic regression, fitted on the training images by L-BFGS with the price
    |W|^2 / 2 beside the summed cross-entropy. Features are first scaled to mean 0 and variance 1 over the training
    images, as a batch norm without parameters does it (He et al. 2021, 2111.06377, appendix A.1).

    Args:
      features: images "batch height width channels" -> "batch width".
      training: batches of `images`, `labels` and `weights`; rows of weight 0 are left out.
      validation: such batches.

    Raises:
      UsageError: the training images are of fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, labels = _gathered(features, training)
    if len(np.unique(labels)) < 2:
        raise UsageError(
            f"the {len(labels)} training images of the linear probe are all of class {labels[0]}; expected images of "
            "at least 2 classes, or measures=[]"
        )
    mean, deviation = x.mean(0), x.std(0)
    deviation[deviation == 0] = 1
    classifier = LogisticRegression(C=1.0, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # see _ITERATIONS
        classifier.fit((x - mean) / deviation, labels)
    unseen, expected = _gathered(features, validation)
    return float(np.mean(classifier.predict((unseen - mean) / deviation) == expected))


def _gathered(
    features: Callable[[jax.Array], jax.Array], batches: Iterable[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    found, labels = [], []
    for batch in batches:
        real = np.flatnonzero(batch["weights"])
        found.append(np.asarray(features(batch["images"]), np.float64)[real])
        labels.append(np.asarray(batch["labels"])[real])
    return np.concatenate(found), np.concatenate(labels)
