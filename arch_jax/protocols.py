"""Properties of models beyond their call, with defaults for those that don't declare them.

Each question has one function here, so that nothing else asks a module for an attribute that it may lack.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from arch_jax.errors import UsageError


def sequence_limit(module: Any) -> int | None:
    """The longest sequence that a model of sequences can take: that of its table of positions; None is any."""
    return getattr(getattr(module, "position", None), "length", None)


def check_length(module: Any, length: int) -> None:
    """Refuses sequences that a model can't take.

    Raises:
      UsageError: `length` is beyond the model's positions.
    """
    position = getattr(module, "position", None)
    if hasattr(position, "check"):
        position.check(length)


def check_example(module: Any, shape: tuple[int, ...]) -> None:
    """Refuses examples that a model can't take, where it has a method `check` for their shape without the batch axis.

    Raises:
      UsageError: the model can't take examples of that shape.
    """
    if hasattr(module, "check"):
        module.check(shape)


def class_count(module: Any) -> int | None:
    """Number of classes that a model predicts or is conditioned on; None without classes."""
    return getattr(module, "classes", None)


def check_head(module: Any) -> None:
    """Refuses a decoder without an output layer, or an encoder alone, where logits are needed.

    Raises:
      UsageError: the module gives hidden states.
    """
    if getattr(module, "encoder_only", False):
        raise UsageError("encoder_only is true, so the model gives hidden states; expected one with a decoder")
    if not getattr(module, "head", True):
        raise UsageError("head is false, so the model gives hidden states; expected a model with an output layer")


def attends(module: Any) -> bool:
    """True if an encoder-decoder has a method `attention` that gives its weights over the source."""
    return bool(getattr(module, "attends", False))


def resolution(module: Any) -> int | None:
    """The resolution of the images that a model is made for; None is any."""
    return getattr(module, "resolution", None)


def vocabulary(module: Any) -> int | None:
    """Number of token ids that a model of tokens knows; None where it doesn't say."""
    return getattr(module, "vocabulary", None)


def source_vocabulary(module: Any) -> int | None:
    """Token ids of an encoder-decoder's source: its own number of them, or that of the target."""
    own = getattr(module, "source_vocabulary", None)
    return vocabulary(module) if own is None else own


def unrolled(module: Any, variables: Any) -> tuple[Any, Any]:
    """A model with a layer of its own for each turn of its scan, and its variables; itself where it scans nothing.

    A scan over layers would copy their caches at every token.
    """
    return module.unrolled(variables) if hasattr(module, "unrolled") else (module, variables)


def takes_state(module: Any) -> bool:
    """True if a model decodes token by token: it has a method `initial_state`."""
    return hasattr(module, "initial_state")


def writes_targets(module: Any) -> bool:
    """True for an encoder-decoder that writes targets token by token: it has methods `encode`, `start`, `decode`."""
    return all(callable(getattr(module, name, None)) for name in ("encode", "start", "decode"))


def batch_size(data: Any) -> int | None:
    """Rows of a training batch of a data component; None where its batches are all of the data."""
    return getattr(data, "batch", None)


def classifies_noisy(module: Any) -> bool:
    """True for a classifier of noisy examples: it has classes, and is called with times but with no condition."""
    taken = inspect.signature(type(module).__call__).parameters
    return class_count(module) is not None and "time" in taken and "condition" not in taken


def point_features(module: Any) -> int | None:
    """Coordinates of the points or vectors that a model makes or takes; None for a model of something else."""
    return getattr(module, "features", None)


def example_shape(module: Any) -> tuple[int, ...]:
    """The shape of the examples that a denoiser or a generator makes, without the batch axis.

    Raises:
      UsageError: it declares neither `features` nor `resolution` and `channels`.
    """
    if point_features(module) is not None:
        return (point_features(module),)
    side, channels = resolution(module), getattr(module, "channels", None)
    if side is None or channels is None:
        raise UsageError(
            f"{type(module).__name__} does not say of what shape its examples are; expected a field `features`, or "
            "`resolution` and `channels`"
        )
    return (side, side, channels)


def has_null_class(module: Any) -> bool:
    """True if a conditional model takes its number of classes as a label that stands for none."""
    return bool(getattr(module, "null_class", False))


def require(part: Any, role: str, owner: Any, names: Iterable[str]) -> None:
    """Refuses a sampler, measure or figure for an objective, model or corpus that lacks what it uses.

    Args:
      part: the component that needs something.
      role: "objective", "model" or "data".
      owner: that object.
      names: the attributes that must be there, and not None.

    Raises:
      UsageError: the first that is missing.
    """
    for name in names:
        if getattr(owner, name, None) is None:
            raise UsageError(
                f"{type(part).__name__} needs `{name}` of the {role}, which {type(owner).__name__} does not have; "
                "expected another component, or none"
            )


def require_arrays(part: Any, data: Any, names: Iterable[str]) -> None:
    """Refuses a component for data whose batches lack an array.

    Raises:
      UsageError: the first that is missing.
    """
    for name in names:
        if name not in data.shapes:
            raise UsageError(
                f"{type(part).__name__} needs {name!r} in the data's batches, which have {', '.join(data.shapes)}"
            )
