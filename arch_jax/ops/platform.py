"""The platform that a program is compiled for: the one JAX runs on, or another, for which it is only lowered here."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from arch_jax.errors import unknown

__all__ = ["PLATFORMS", "acting_as", "named_platform", "platform"]

PLATFORMS = ("cpu", "gpu", "tpu")
_named: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """The platform by which an operation chooses its form: "cpu", "gpu" or "tpu"."""
    return _named.get() or jax.default_backend()


def named_platform() -> str | None:
    """The platform that `acting_as` names; None outside of it."""
    return _named.get()


@contextlib.contextmanager
def acting_as(name: str) -> Iterator[None]:
    """Traces inside it are for the platform `name`, wherever JAX runs now: for lowering ahead of time.

    What jit has traced before is not traced again.

    Raises:
      UsageError: an unknown platform.
    """
    if name not in PLATFORMS:
        raise unknown("platform", name, PLATFORMS)
    token = _named.set(name)
    try:
        yield
    finally:
        _named.reset(token)
