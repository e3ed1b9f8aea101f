"""The train loop and its parts: state, step, placement on devices, checkpoints, reports.

The names below are imported when first used. Calling the package trains: `arch_jax.train(experiment, "runs/mine")`.
"""

import importlib
import sys
import types
from typing import Any

_HOME = {
    "Outcome": "loop",
    "TrainState": "state",
    "evaluate": "loop",
    "initial_state": "state",
    "make_program": "step",
    "make_step": "step",
    "open_run": "restore",
    "train": "loop",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Train(types.ModuleType):
    """A package is a module, and this one is callable: the function and its parts share a name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """`arch_jax.train.loop.train`."""
        return self.train(*arguments, **options)


sys.modules[__name__].__class__ = _Train
