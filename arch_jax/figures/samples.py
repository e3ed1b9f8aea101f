"""Samples during the training, by the run's own sampler."""

import dataclasses
from typing import Any

import jax

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.base import Figure, is_figure


@component("samples", kind="figure")
@dataclasses.dataclass(frozen=True)
class Samples(Figure):
    """Text and figures that the sampler draws; its arrays are left out.

    Attributes:
      count: samples drawn.
      fixed: whether all evaluations draw with one key, so that from one to the next only the model changes.
    """

    count: int = 1
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"count is {self.count}; expected at least 1")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        made = sampler(task, variables, data, jax.random.key(0) if self.fixed else key, self.count)
        return {name: thing for name, thing in made.items() if isinstance(thing, str) or is_figure(thing)}
