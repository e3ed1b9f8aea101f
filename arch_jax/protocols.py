"""Properties of models beyond their call, with defaults for those that don't declare them.

Each question has one function here, so that nothing else asks a module for an attribute that it may lack.
"""

from typing import Any


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


def attends(module: Any) -> bool:
    """True if an encoder-decoder has a method `attention` that gives its weights over the source."""
    return bool(getattr(module, "attends", False))
