"""Numbers that a caller gave, as Python's own: NumPy's and JAX's scalars are taken, and the rest is one sentence."""

import operator
from typing import Any

from arch_jax.errors import UsageError


def shown(value: Any, most: int = 60) -> str:
    """A value as a part of a sentence: its repr on one line, of bounded length."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr may be anybody's code
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def whole(name: str, value: Any, expected: str) -> int:
    """An integer; floats and truth values are none.

    Args:
      name: of the argument.
      value: as it was given.
      expected: the end of the sentence, such as "an integer of at least 1".

    Raises:
      UsageError: it is no integer.
    """
    if not _is_truth(value):
        try:
            return operator.index(value)
        except Exception:  # of traced values, arrays and others' classes
            pass
    raise UsageError(f"{name} is {shown(value)}; expected {expected}")


def real(name: str, value: Any, expected: str) -> float:
    """A real number, NaN and infinities included.

    Args:
      name: of the argument.
      value: as it was given.
      expected: the end of the sentence.

    Raises:
      UsageError: it is no number.
    """
    if not _is_truth(value) and not isinstance(value, str | bytes) and not getattr(value, "ndim", 0):
        try:
            return float(value)
        except Exception:
            pass
    raise UsageError(f"{name} is {shown(value)}; expected {expected}")


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"
