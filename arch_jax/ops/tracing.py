"""What a trace is for: values, or shapes alone."""

import contextlib
import contextvars
from collections.abc import Iterator

_SHAPES = contextvars.ContextVar("shapes", default=False)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Within the block nothing but shapes is asked for, so that what only settles random draws may be left out."""
    token = _SHAPES.set(True)
    try:
        yield
    finally:
        _SHAPES.reset(token)


def asks_for_values() -> bool:
    """Whether a trace is for a program that will run."""
    return not _SHAPES.get()
