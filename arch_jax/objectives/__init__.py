"""What is minimised, one file a training shape."""

import importlib
import pkgutil

from arch_jax.errors import unknown
from arch_jax.fields import components
from arch_jax.objectives.base import ObjectiveBase, Player

__all__ = ["ObjectiveBase", "Player", "objective"]


def objective(name: str) -> ObjectiveBase:
    """The objective of a name, with its defaults.

    Raises:
      UsageError: unknown objective, with the nearest names.
    """
    for found in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{found.name}")
    known = components("objective")
    if name not in known:
        raise unknown("objective", name, known)
    return known[name]()
