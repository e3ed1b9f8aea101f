"""Figures of an autoencoder beside how its data was made: the score of a mixture, the atoms of a dictionary."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch_jax.evaluation.ground_truth import NEAR
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.canvas import new_figure
from arch_jax.ops.gaussian_mixture import mixture_log_density, mixture_score
from arch_jax.ranges import Positive


@component("score_field", kind="figure")
@dataclasses.dataclass(frozen=True)
class ScoreField(Figure):
    """The score that a denoising autoencoder implies beside that of the mixture; nothing of other data."""

    of_objective: ClassVar[tuple[str, ...]] = ("noise",)

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        batch = next(iter(data.validation()))
        if "centres" not in batch or not task.noise or np.shape(batch["x"])[-1] != 2:
            return {}
        estimate = lambda x: (task.outputs(variables, x) - x) / task.noise**2
        return {"score": score_figure(estimate, batch["centres"], batch["std"], task.noise)}


@component("diffusion_score", kind="figure")
@dataclasses.dataclass(frozen=True)
class DiffusionScore(Figure):
    """The score that a denoiser implies at one noise level, beside that of the noisy mixture; nothing of other data.

    Attributes:
      ratio: the noise level sigma / alpha.
    """

    of_objective: ClassVar[tuple[str, ...]] = ("denoised", "process")

    ratio: Positive = 0.3

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        batch = next(iter(data.validation()))
        if "centres" not in batch or np.shape(batch["x"])[-1] != 2:
            return {}
        time = float(task.process.time_of(self.ratio))
        alpha, sigma = map(float, task.process.coefficients(np.float64(time), np))
        # In y = x / alpha, whose score is alpha times that of x.
        estimate = lambda y: alpha**2 * (_denoised(task, variables, alpha * y, time) - y) / sigma**2
        title = f"(D(x) - x) / r², r = {self.ratio:g}"
        return {"score": score_figure(estimate, batch["centres"], batch["std"], self.ratio, title=title)}


@functools.partial(jax.jit, static_argnums=0)
def _denoised(task: Any, variables: Any, x: jax.Array, time: Any) -> jax.Array:
    return task.denoised(variables, x, time)


@component("dictionary_atoms", kind="figure")
@dataclasses.dataclass(frozen=True)
class DictionaryAtoms(Figure):
    """The decoder's rows beside the atoms of the dictionary that made the data; nothing of other data."""

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        batch = next(iter(data.validation()))
        if "atoms" not in batch:
            return {}
        return {"atoms": atoms_figure(task.model.apply(variables, method="atoms"), batch["atoms"], NEAR)}


def score_figure(
    estimate: Callable[[Array], Array],
    centres: np.ndarray,
    std: np.ndarray,
    noise: float,
    places: int = 21,
    title: str = "(r(x) - x) / noise²",
) -> Any:
    """A figure of the score over the density in the plane: as it is, as the model has it, and how far they differ."""
    wide = float(np.sqrt(np.square(std) + noise**2))
    reach = float(np.abs(centres).max()) + 2.5 * wide
    plane = lambda count: jnp.stack(jnp.meshgrid(*[jnp.linspace(-reach, reach, count)] * 2), axis=-1).reshape(-1, 2)
    fine, coarse = plane(121), plane(places)
    density = np.exp(mixture_log_density(fine, jnp.asarray(centres), wide)).reshape(121, 121)
    truth = {
        count: np.asarray(mixture_score(at, jnp.asarray(centres), wide))
        for count, at in ((121, fine), (places, coarse))
    }
    made = {count: np.asarray(estimate(at)) for count, at in ((121, fine), (places, coarse))}
    figure = new_figure(figsize=(11.0, 3.9), layout="constrained")
    axes = figure.subplots(1, 3)
    longest = float(np.linalg.norm(truth[places], axis=1).max())
    for part, name, field in ((axes[0], "score of the noisy mixture", truth), (axes[1], title, made)):
        part.imshow(density, extent=(-reach, reach) * 2, origin="lower", cmap="Greys", interpolation="bilinear")
        part.quiver(*np.asarray(coarse).T, *field[places].T, color="C3", scale=longest * 14, width=0.004)
        part.set_title(name, size=9)
    error = np.linalg.norm(made[121] - truth[121], axis=1).reshape(121, 121)
    drawn = axes[2].imshow(error, extent=(-reach, reach) * 2, origin="lower", cmap="magma", vmin=0, vmax=longest)
    axes[2].contour(density, extent=(-reach, reach) * 2, colors="white", linewidths=0.5, levels=4)
    axes[2].set_title("length of the difference", size=9)
    figure.colorbar(drawn, ax=axes[2], shrink=0.8)
    for part in axes:
        part.set(xticks=[], yticks=[], aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
    return figure


def atoms_figure(found: Float[Array, "rows size"], atoms: np.ndarray, near: float) -> Any:
    """A figure of |cosine| of every atom with the rows nearest to each, and of the nearest row's, in order.

    Args:
      found: rows of length 1.
      atoms: of length 1.
      near: an atom counts as recovered where 1 - |cosine| is below this.
    """
    cosines = np.abs(np.asarray(atoms) @ np.asarray(jax.device_get(found)).T)
    best = cosines.max(axis=1)
    figure = new_figure(figsize=(9.0, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    drawn = left.imshow(cosines[:, cosines.argmax(axis=1)], cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    left.set(xlabel="the row nearest to each atom", ylabel="atom")
    figure.colorbar(drawn, ax=left, shrink=0.8)
    right.plot(np.sort(best)[::-1], color="C0")
    right.axhline(1 - near, color="grey", linewidth=0.8, linestyle="--")
    right.set(xlabel="atoms, the best found first", ylabel="|cosine| with the nearest row", ylim=(0, 1.03))
    right.set_title(f"{int((best > 1 - near).sum())} of {len(atoms)} atoms recovered", size=9)
    return figure
