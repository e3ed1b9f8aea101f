"""Reconstructions of validation examples by an autoencoder."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from arch_jax.fields import component
from arch_jax.figures.reconstructions import reconstruction_figure, reconstruction_rows
from arch_jax.sampling.base import Sampler, check_count


@component("reconstruct", kind="sampler")
@dataclasses.dataclass(frozen=True)
class Reconstruct(Sampler):
    """The first validation examples and what the model makes of them."""

    of_objective: ClassVar[tuple[str, ...]] = ("reconstructions",)

    def __call__(self, task: Any, variables: Any, data: Any, key: jax.Array, count: int = 1) -> dict[str, Any]:
        """One array a stage ("images", "reconstruction" ...), and of images the figure "reconstructions"."""
        count = check_count(count)
        rows = reconstruction_rows(task, variables, data, key, count)
        arrays = {name.replace(" ", "_"): np.asarray(row) for name, row in rows.items()}
        first = next(iter(arrays.values()))
        figure = {"reconstructions": reconstruction_figure(task, rows, data)} if first.ndim == 4 else {}
        return figure | arrays
