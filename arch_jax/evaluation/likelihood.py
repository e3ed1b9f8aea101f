"""Exact likelihood of a diffusion model by the probability-flow ODE."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.evaluation.base import Measure
from arch_jax.fields import component
from arch_jax.ops.diffusion.condition import Condition
from arch_jax.ops.diffusion.likelihood import Distribution, draw_probes, flow_table, integrate, normal_log_density
from arch_jax.ops.gaussian_mixture import mixture_log_density
from arch_jax.protocols import class_count

#: Levels of a pixel.
LEVELS = 256


@component("likelihood", kind="measure")
@dataclasses.dataclass(frozen=True)
class Likelihood(Measure):
    """Negative log-likelihood of validation examples under the probability-flow ODE; of points and images.

    The density is that at the process's first time, with N(0, prior_std^2) at its last. Gives

        nats                 -log p, the mean over examples
        nats_error           its standard error
        nats_above_truth     of a mixture: the mean of log p_true - log p, both at the same points
        bits_per_dimension   of images with 256 levels in [-1, 1]

    Images are dequantised uniformly: every pixel is moved from the nearest of 256 levels by at most half of one, 1 /
    255. The mean of -log2 p, less log2 of a level's width 2 / 255 for each pixel, is then at least the bits that the
    levels themselves take (Theis et al. 2016, 1511.01844, section 3.1). score_sde moves pixels upwards, by as much as a
    level of 2 / 256, instead.

    Source: Song et al. 2021 (2011.13456, section 4.3, equations 39 and 40).

    Attributes:
      count: examples at most, at random.
      steps: of the Runge-Kutta method.
      order: of the method: 6 calls the network 7 times a step, 4 calls it 4 times.
      divergence: the trace of the Jacobian, by as many derivatives as there are features ("exact"), or Hutchinson's
        unbiased estimate ("hutchinson"), for images.
      probes: vectors of each example in the estimate.
      distribution: of the vectors: signs or normal numbers.
      batch: examples at a time, which changes none of them.
    """

    of_objective: ClassVar[tuple[str, ...]] = ("process", "prediction", "denoised")

    count: int = 2500
    steps: int = 32
    order: Literal[4, 6] = 6
    divergence: Literal["exact", "hutchinson"] = "exact"
    probes: int = 1
    distribution: Distribution = "rademacher"
    batch: int = 256

    def check(self, task: Any, sampler: Any, data: Any) -> None:
        """Refuses labels that the model needs and the data lacks, and predictions that end before the process does."""
        super().check(task, sampler, data)
        task.prediction.check(task.process)
        flow_table(task.process, self.steps, self.order)
        if class_count(task.model) is not None and "labels" not in data.shapes:
            raise UsageError("Likelihood is that given the label, and the data has none; expected data with labels")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, float]:
        name = next((name for name in ("x", "images") if name in data.shapes), None)
        if name is None or len(data.shapes[name][0]) != {"x": 2, "images": 4}[name]:
            return {}
        examples, labels, truth = _chosen(data, name, self.count)
        if class_count(task.model) is None:
            labels = None
        draw, key = jax.random.split(key)
        if name == "images":
            examples = np.asarray(dequantised(jnp.asarray(examples), _keys(draw, len(examples))))
        nats = -self.log_density(task, variables, examples, key, labels).astype(np.float64)
        found = {"nats": nats.mean(), "nats_error": nats.std() / math.sqrt(len(nats))}
        if name == "images":
            found["bits_per_dimension"] = bits_per_dimension(nats.mean(), examples[0].size)
        if truth is not None:
            true = mixture_log_density(jnp.asarray(examples), *map(jnp.asarray, truth))
            found["nats_above_truth"] = (np.asarray(true, np.float64) + nats).mean()
        return {name: float(number) for name, number in found.items()}

    def log_density(
        self, task: Any, variables: Any, examples: Any, key: jax.Array | None = None, labels: np.ndarray | None = None
    ) -> np.ndarray:
        """log p in nats of each example, "count", at the process's first time.

        Args:
          task: the objective with its model.
          variables: of the model.
          examples: "count ...", scaled as the data is.
          key: of the probes; example i has those of the key and of i alone.
          labels: class of each, "count".
        """
        examples = jnp.asarray(examples)
        keys = _keys(jax.random.key(0) if key is None else key, len(examples))
        table = flow_table(task.process, self.steps, self.order, examples.dtype)
        probes = None if self.divergence == "exact" else (self.probes, self.distribution)
        # The last batch is filled up, so that all of them are one program.
        size = min(self.batch, len(examples))
        padded = np.arange(-(-len(examples) // size) * size) % len(examples)
        found = []
        for part in padded.reshape(-1, size):
            told = None if labels is None else Condition(label=jnp.asarray(labels[part]))
            found.append(np.asarray(_log_density(task, probes, variables, table, examples[part], keys[part], told)))
        return np.concatenate(found)[: len(examples)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_density(
    task: Any,
    probes: tuple[int, Distribution] | None,
    variables: Any,
    table: Any,
    x: jax.Array,
    keys: jax.Array,
    condition: Any,
) -> jax.Array:
    vectors = None if probes is None else draw_probes(keys, probes[0], x.shape[1:], probes[1], x.dtype)
    end, change = integrate(table, lambda x, time: task.denoised(variables, x, time, condition), x, vectors)
    return normal_log_density(end, task.process.prior_std) + change


@jax.jit
def dequantised(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Pixels in [-1, 1] at the nearest of 256 levels, each moved uniformly by at most half of one.

    Args:
      images: "batch ...".
      keys: of the images, "batch".
    """
    half = 1 / (LEVELS - 1)
    images = jnp.round((images + 1) / (2 * half)) * 2 * half - 1
    draw = lambda key: jax.random.uniform(key, images.shape[1:], images.dtype, -half, half)
    return images + jax.vmap(draw)(keys)


def bits_per_dimension(nats: float | int, features: int) -> float:
    """Bits a pixel of the levels, of the nats of the dequantised density: nats / (d log 2) - log2(2 / 255)."""
    return nats / (features * math.log(2)) - math.log2(2 / (LEVELS - 1))


def _keys(key: jax.Array, count: int) -> jax.Array:
    """A key for each example: example i draws the same, however many there are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def _chosen(data: Any, name: str, count: int) -> tuple[np.ndarray, np.ndarray | None, tuple[Any, Any] | None]:
    """`count` validation examples at random, the same each time, with their labels, and (centres, std) of a mixture."""
    total = data.facts.get(f"validation_{'points' if name == 'x' else 'images'}")
    if total is None:
        total = sum(len(batch[name]) for batch in _rows(data.validation()))
    # Not the first: an image folder is in the order of its classes.
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(0).permutation(total)[:count]] = True
    examples, labels, truth, start = [], [], None, 0
    for batch in _rows(data.validation()):
        kept = chosen[start : start + len(batch[name])]
        start += len(kept)
        examples.append(batch[name][kept])
        if "labels" in batch:
            labels.append(batch["labels"][kept])
        if "centres" in batch:
            truth = batch["centres"], batch["std"]
    return np.concatenate(examples).astype(np.float32), np.concatenate(labels) if labels else None, truth


def _rows(batches: Any) -> Iterator[dict[str, np.ndarray]]:
    """Batches without the rows that only fill them up."""
    for batch in batches:
        kept = np.asarray(batch["weights"]) > 0 if "weights" in batch else slice(None)
        per_row = ("x", "images", "labels")
        yield {name: np.asarray(part)[kept] if name in per_row else part for name, part in batch.items()}
