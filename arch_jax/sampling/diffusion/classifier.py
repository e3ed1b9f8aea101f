"""Classifiers that guide a diffusion: which ones can (Dhariwal & Nichol 2021, 2105.05233, section 4)."""

from typing import Any

from arch_jax.errors import UsageError
from arch_jax.protocols import check_example, class_count, classifies_noisy, example_shape


def check_classifier(classifier: Any, task: Any, data: Any) -> None:
    """Refuses a classifier that can't guide a model; of one that is not opened yet, nothing is known.

    Args:
      classifier: `Frozen`.
      task: the objective with its model.
      data: the corpus, or the part of it that a run carries.

    Raises:
      UsageError: it has no classes or takes no times, has fewer classes than the model, or was trained on other values
        of pixels, or on images of another shape.
    """
    model, name = classifier.model, f"sampler.classifier {classifier.source!r}"
    if model is None:
        return
    if not classifies_noisy(model):
        raise UsageError(
            f"{name} is a {type(model).__name__}, which is no classifier of noisy examples; expected a run with the "
            "objective noisy_classification"
        )
    own, its = class_count(task.model), class_count(model)
    if own is not None and own > its:
        raise UsageError(f"{name} knows {its} classes, and the model has {own}; expected at least as many")
    check_example(model, example_shape(task.model))
    seen, range_of = (classifier.low, classifier.high), (getattr(data, "low", None), getattr(data, "high", None))
    if None not in (*seen, *range_of) and seen != range_of:
        raise UsageError(
            f"{name} was trained on pixels from {seen[0]:g} to {seen[1]:g}, and the data's go from {range_of[0]:g} to "
            f"{range_of[1]:g}; expected the same"
        )
