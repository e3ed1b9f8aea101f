"""Distances of generated points from real ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.evaluation.base import Measure
from arch_jax.evaluation.mode_coverage import modes
from arch_jax.fields import component
from arch_jax.ops.sample_distances import mmd, sliced_wasserstein


@component("point_distances", kind="measure")
@dataclasses.dataclass(frozen=True)
class PointDistances(Measure):
    """Distances of the sampler's points from the validation points; nothing of other data than points.

    Gives, with as many generated points as real ones:

        sliced_wasserstein   in units of the coordinates
        distance             the same over its floor: that between the two halves of the real points, for half as many
        mmd                  unbiased, of Gaussian kernels a tenth, a third and once the real points' deviation wide
        mode_share           of a mixture: the smallest share of the points that any mode has, times their number

    Attributes:
      count: points at most.
    """

    count: int = 2500

    def check(self, task: Any, sampler: Any, data: Any) -> None:
        """Refuses fewer than 2 points, which have no distance from each other."""
        super().check(task, sampler, data)
        if self.count < 2:
            raise UsageError(f"count is {self.count}; expected at least 2 points")
        if len(data.shapes.get("x", ((), ""))[0]) == 2 and len(next(iter(data.validation()))["x"]) < 2:
            raise UsageError(
                "the data has 1 validation point, and PointDistances needs at least 2; expected such as "
                "data.validation=2500, or measures=[]"
            )

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, float]:
        batch = next(iter(data.validation()))
        real = np.asarray(batch.get("x", 0), np.float32)
        if real.ndim != 2:
            return {}
        real = real[: self.count]
        made = sampler(task, variables, data, jax.random.key(0), len(real)).get("coordinates")
        if made is None:
            raise UsageError(
                f"PointDistances needs a sampler that gives `coordinates`, which {type(sampler).__name__} does not"
            )
        made, directions = jnp.asarray(made), jax.random.key(1)
        half = len(real) // 2
        apart = lambda a, b: float(sliced_wasserstein(jnp.asarray(a), jnp.asarray(b), directions))
        found = apart(made, real)
        floor = apart(real[:half], real[half : 2 * half])
        widths = real.std() * np.array([0.1, 1 / 3, 1.0], np.float32)
        told = {
            "sliced_wasserstein": found,
            "distance": apart(made[:half], real[:half]) / floor,
            "mmd": float(mmd(made, jnp.asarray(real), jnp.asarray(widths))),
        }
        if "centres" in batch:
            centres = jnp.asarray(batch["centres"])
            nearest = jnp.argmin(jnp.linalg.norm(made[:, None] - centres, axis=-1), axis=1)
            shares = jnp.bincount(nearest, length=len(centres)) / len(made)
            near = modes(made, centres, jnp.asarray(batch["std"]))[1]
            told |= {"mode_share": float(shares.min() * len(centres)), "high_quality": float(near[0] / near[1])}
        return told
