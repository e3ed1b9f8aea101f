"""The linear probe: what a linear classifier makes of features that were learned without labels."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from arch_jax.errors import UsageError

#: Iterations of L-BFGS after which the regression is taken as it is: by then accuracies move in the fourth digit.
_ITERATIONS = 300


def probe_accuracy(
    features: Callable[[jax.Array], jax.Array],
    training: Iterable[Mapping[str, Any]],
    validation: Iterable[Mapping[str, Any]],
) -> float:
    """The share of validation pictures that a linear classifier of their features gets right.

    The classifier is a multinomial logistic regression, fitted on the training pictures by L-BFGS with the price
    |W|^2 / 2 beside the summed cross-entropy. Features are first scaled to mean 0 and variance 1 over the training
    pictures, as a batch norm without parameters does it (He et al. 2021, 2111.06377, appendix A.1).

    Args:
      features: pictures "batch height width channels" -> "batch width".
      training: batches of `images`, `labels` and `weights`; rows of weight 0 are left out.
      validation: such batches.

    Raises:
      UsageError: the training pictures are of fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, labels = _gathered(features, training)
    if len(np.unique(labels)) < 2:
        raise UsageError(
            f"the {len(labels)} training pictures of the linear probe are all of class {labels[0]}; expected pictures "
            "of at least 2 classes, or objective.probe_pictures=none"
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
