"""Samples of a generator."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from arch_jax.fields import component
from arch_jax.figures.image_grid import image_grid, in_rows
from arch_jax.sampling.base import Sampler, check_count, keys_by_row


@component("generator", kind="sampler")
@dataclasses.dataclass(frozen=True)
class GeneratorSampler(Sampler):
    """Examples that a generator makes of standard normal latents (Goodfellow et al. 2014, 1406.2661, section 3)."""

    of_model: ClassVar[tuple[str, ...]] = ("generator",)

    uses_data: ClassVar[bool] = False

    def __call__(self, task: Any, variables: Any, data: Any, key: jax.Array, count: int = 1) -> dict[str, Any]:
        """Points as lines of numbers ("points") and as an array; or images as a figure ("samples") and as an array."""
        count = check_count(count)
        latent = jax.vmap(lambda k: jax.random.normal(k, (task.model.generator.latent,)))(keys_by_row(key, count))
        made = np.asarray(task.outputs(variables, latent, method="generate"))
        if made.ndim == 4:
            rows = {name: data.unit_range(row) for name, row in in_rows(made).items()}
            return {"samples": image_grid(rows), "images": made}
        lines = (" ".join(f"{number:.6g}" for number in np.ravel(row)) for row in made)
        return {"points": "\n".join(lines), "coordinates": made}
