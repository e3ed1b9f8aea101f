"""Generated points over the density of real ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.evaluation.mode_coverage import modes
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.canvas import new_figure


@component("generated_points", kind="figure")
@dataclasses.dataclass(frozen=True)
class GeneratedPoints(Figure):
    """Generated points over the real density, where points are in the plane; nothing of other data.

    All evaluations draw with one key: in the film it is the generator that moves, not the noise.

    Attributes:
      count: generated points, at most those of a validation batch.
    """

    count: int = 2500

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"count is {self.count}; expected at least 1")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        batch = next(iter(data.validation()))
        real = np.asarray(batch.get("x", 0))
        if real.ndim != 2 or real.shape[1] != 2:
            return {}
        made = sampler(task, variables, data, jax.random.key(0), min(self.count, len(real))).get("coordinates")
        if made is None:
            raise UsageError(
                f"GeneratedPoints needs a sampler that gives `coordinates`, which {type(sampler).__name__} does not"
            )
        if "centres" not in batch:
            return {"points": points_figure(real, made)}
        covered, (near, count) = modes(*map(jnp.asarray, (made, batch["centres"], batch["std"])))
        share = float(near / count)
        return {"points": points_figure(real, made, np.asarray(batch["centres"]), np.asarray(covered), share)}


def points_figure(
    real: np.ndarray,
    made: np.ndarray,
    centres: np.ndarray | None = None,
    covered: np.ndarray | None = None,
    near: float | None = None,
) -> Any:
    """A figure of generated points over a histogram of real ones.

    Args:
      real: "points 2".
      made: generated ones, "points 2".
      centres: of the modes of a mixture, "modes 2"; each gets a circle.
      covered: which of them a generated point is near to, booleans "modes".
      near: the share of generated points near any centre.
    """
    figure = new_figure(figsize=(4.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    reach = 1.6 * float(np.abs(real).max())
    density, _, _ = np.histogram2d(*real.T, bins=120, range=[[-reach, reach]] * 2)
    axes.imshow(
        density.T > 0, extent=(-reach, reach) * 2, origin="lower", cmap="Greys", vmax=2, interpolation="nearest"
    )
    inside = (np.abs(made) <= reach).all(axis=1)
    axes.scatter(*made[inside].T, s=3, alpha=0.4, color="C3", linewidths=0)
    title = f"{len(made)} generated points (red) over real ones (grey)"
    if centres is not None:
        axes.scatter(*centres.T, s=90, facecolors="none", edgecolors=["C2" if one else "C0" for one in covered])
        title = f"{int(covered.sum())} of {len(centres)} modes, {100 * near:.1f} % of points near one"
    if not inside.all():
        title += f"\n{(~inside).sum()} outside the axes"
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.set_title(title, size=9)
    return figure
