"""The train loop and what it needs: state, step, placement on devices, checkpoints, reports."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("train", "Outcome", "evaluate"):
        from arch_jax.train import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
