"""Objectives, one file a training shape."""

from typing import Any

from arch_jax.discovery import import_package
from arch_jax.errors import unknown
from arch_jax.fields import components, override
from arch_jax.objectives.base import ObjectiveBase, Phase, Player

__all__ = ["ObjectiveBase", "Phase", "Player", "objective"]


def objective(name: str, **changes: Any) -> ObjectiveBase:
    """The objective of a name, with its defaults, or with fields replaced.

    Raises:
      UsageError: unknown objective or field (nearest names), or a value of the wrong type.
    """
    import_package(__name__)
    known = components("objective")
    if name not in known:
        raise unknown("objective", name, known)
    return override(known[name](), changes)
