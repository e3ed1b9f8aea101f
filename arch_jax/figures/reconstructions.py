"""Validation images beside their reconstructions."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.image_grid import image_grid, validation_images


@component("reconstructions", kind="figure")
@dataclasses.dataclass(frozen=True)
class Reconstructions(Figure):
    """The first validation images and the stages that the objective takes them through; nothing of other data.

    Attributes:
      count: images.
    """

    of_objective: ClassVar[tuple[str, ...]] = ("reconstructions",)

    count: int = 12

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"count is {self.count}; expected at least 1")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        if "images" not in data.shapes:
            return {}
        rows = reconstruction_rows(task, variables, data, key, self.count)
        return {"reconstructions": reconstruction_figure(task, rows, data)}


def reconstruction_rows(task: Any, variables: Any, data: Any, key: jax.Array, count: int) -> dict[str, Any]:
    """Stage -> the first `count` validation examples at that stage, by `task.reconstructions`."""
    if "images" in data.shapes:
        examples, labels = validation_images(data, count)
        return task.reconstructions(variables, examples, labels, data, key)
    examples = np.asarray(next(iter(data.validation()))["x"])[:count]
    return task.reconstructions(variables, examples, None, data, key)


def reconstruction_figure(task: Any, rows: dict[str, Any], data: Any) -> Any:
    """A grid with a row of images for each stage; codes, which are in [0, 1] already, as they are."""
    scaled = {name: np.asarray(row) if name == "codes" else data.unit_range(row) for name, row in rows.items()}
    return image_grid(scaled, task.reconstruction_title)
