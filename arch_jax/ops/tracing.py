"""The purpose of a trace: values, or shapes alone."""

import contextlib
import contextvars
from collections.abc import Iterator

_SHAPES = contextvars.ContextVar("shapes", default=False)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Within the block only shapes are asked for, so that what affects random values alone may be left out."""
    token = _SHAPES.set(True)
    try:
        yield
    finally:
        _SHAPES.reset(token)


def asks_for_values() -> bool:
    """True if a trace is for a program that will run."""
    return not _SHAPES.get()
