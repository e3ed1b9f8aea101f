"""Images from the prior of a latent-variable model."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.image_grid import image_grid, in_rows
from arch_jax.sampling.base import Sampler, check_count, keys_by_row
from arch_jax.scalars import real


@component("latent_prior", kind="sampler")
@dataclasses.dataclass(frozen=True)
class LatentPrior(Sampler):
    """Decoded codes from the standard normal prior (Kingma & Welling 2014, 1312.6114, section 3).

    Attributes:
      temperature: standard deviation of the codes; 1 is the prior.
    """

    of_model: ClassVar[tuple[str, ...]] = ("latent_shape",)

    temperature: float = 1.0

    def __post_init__(self) -> None:
        expected = "a standard deviation of at least 0"
        if not real("temperature", self.temperature, expected) >= 0:
            raise UsageError(f"temperature is {self.temperature}; expected {expected}")

    def __call__(self, task: Any, variables: Any, data: Any, key: jax.Array, count: int = 1) -> dict[str, Any]:
        """{"samples": figure, "images": "count height width channels"}; of a conditional model, `count` a class."""
        count = check_count(count)
        code = task.model.latent_shape(data.shapes["images"][0][1:])
        made = {}
        for label in range(task.classes or 1):
            keys = keys_by_row(jax.random.fold_in(key, label), count)
            z = self.temperature * jax.vmap(lambda k: jax.random.normal(k, code))(keys)
            condition = (jnp.full(count, label),) if task.classes else ()
            made[str(label)] = np.asarray(task.outputs(variables, z, *condition, method="decode"))
        images = np.concatenate(list(made.values()))
        rows = made if task.classes else in_rows(images)
        title = "drawn from the prior" + (", class by class" if task.classes else "")
        figure = image_grid({name: data.unit_range(row) for name, row in rows.items()}, title)
        return {"samples": figure, "images": images}
