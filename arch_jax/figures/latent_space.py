"""The latent space of a variational autoencoder: ways between two codes, and the plane of two components."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.image_grid import image_grid, validation_images
from arch_jax.ops.latents import linear_interpolation, spherical_interpolation


@component("interpolations", kind="figure")
@dataclasses.dataclass(frozen=True)
class Interpolations(Figure):
    """Decoded ways from one validation image's code to another's, straight and spherical.

    Attributes:
      count: images of each way, at least 2.
    """

    of_model: ClassVar[tuple[str, ...]] = ("latent_shape",)
    arrays: ClassVar[tuple[str, ...]] = ("images",)

    count: int = 12

    def __post_init__(self) -> None:
        if self.count < 2:
            raise UsageError(f"count is {self.count}; expected at least 2, both ends of a way")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        images, labels = validation_images(data, self.count)
        count = len(images)
        given = (jnp.asarray(labels),) if task.classes else ()
        _, mean, _ = task.outputs(variables, jnp.asarray(images), *given)
        share = jnp.linspace(0, 1, count)
        ways = {}
        for start in range(0, min(count - 1, 4), 2):
            for name, way in (("linear", linear_interpolation), ("spherical", spherical_interpolation)):
                condition = (jnp.full(count, labels[start]),) if task.classes else ()
                z = way(mean[start].ravel(), mean[start + 1].ravel(), share).reshape(count, *mean.shape[1:])
                decoded = np.asarray(task.outputs(variables, z, *condition, method="decode"))
                ways[f"{name} {start // 2 + 1}"] = data.unit_range(decoded)
        return {"interpolations": image_grid(ways, "from one code to another")} if ways else {}


@component("latent_map", kind="figure")
@dataclasses.dataclass(frozen=True)
class LatentMap(Figure):
    """Images at the quantiles of the prior's two components (1312.6114, figure 4); nothing of other latent spaces.

    Attributes:
      count: quantiles along each of the two.
    """

    of_model: ClassVar[tuple[str, ...]] = ("latent_shape",)
    arrays: ClassVar[tuple[str, ...]] = ("images",)

    count: int = 15

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"count is {self.count}; expected at least 1")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        from jax.scipy.stats import norm

        code = task.model.latent_shape(data.shapes["images"][0][1:])
        if tuple(code) != (2,) or task.classes:
            return {}
        places = norm.ppf(jnp.linspace(0.03, 0.97, self.count))
        rows = {}
        for y in places[::-1]:
            z = jnp.stack([places, jnp.full(self.count, y)], axis=-1)
            rows[f"{float(y):.1f}"] = data.unit_range(task.outputs(variables, z, method="decode"))
        return {"latent_map": image_grid(rows, "the latent plane")}
