"""The features of a classifier: its last hidden layer, whatever the architecture calls it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from arch_jax.errors import UsageError


def logits_and_features(
    classify: Callable[[], Float[Array, "batch classes"]],
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch features"]]:
    """A classifier's logits, and the input of the layer that gives them, flattened if it has more axes.

    The layer is found by what it returns: of the modules whose output the logits are, the innermost. Of LeNet-5 that is
    its output layer, with F6 before it; of VGG the last linear layer, with the second hidden one before it; of ResNet
    and ViT it is fed by what they give with classes=None.

    Args:
      classify: calls `apply` of the classifier, traced or not.

    Raises:
      UsageError: no layer gives the logits, which are computed of several, or averaged.
    """
    calls: list[tuple[Any, Any]] = []

    def note(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        made = call(*arguments, **options)
        if context.method_name == "__call__" and context.module.path and arguments:
            calls.append((arguments[0], made))
        return made

    with nn.intercept_methods(note):
        logits = classify()
    # A layer ends before the one around it does: the first found is the innermost.
    features = next((given for given, made in calls if made is logits and isinstance(given, jax.Array)), None)
    if features is None:
        raise UsageError(
            "the classifier's logits are no layer's output, so it has no last hidden layer; expected one that ends in "
            "a layer, such as lenet5 or resnet-18"
        )
    return logits, features.reshape(len(features), -1)
