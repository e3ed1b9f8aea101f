"""Denoising: what every diffusion and flow model minimises."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.evaluation.base import Measure
from arch_jax.evaluation.point_distances import PointDistances
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.ground_truth import DiffusionScore
from arch_jax.figures.points import GeneratedPoints
from arch_jax.figures.samples import Samples
from arch_jax.inputs import calls
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.diffusion.bound import bound_term
from arch_jax.ops.diffusion.condition import Condition
from arch_jax.ops.diffusion.predictions import Noise, Prediction
from arch_jax.ops.diffusion.processes import Process, VariancePreserving
from arch_jax.ops.diffusion.weightings import Simple, TrainingTimes, UniformTimes, Weighting
from arch_jax.ops.gaussian_mixture import mixture_score
from arch_jax.ops.losses import weighted
from arch_jax.ops.precision import at_least_float32
from arch_jax.protocols import check_example, class_count, has_null_class, point_features
from arch_jax.ranges import Count, PartialShare, Share
from arch_jax.sampling.base import Sampler
from arch_jax.sampling.diffusion.single_step import DDIM


@component("diffusion", kind="objective")
@dataclasses.dataclass(frozen=True)
class Diffusion(ObjectiveBase):
    """weight(t) |F(x_t, t) - target|^2, the mean over an example's entries, with x_t = alpha x_0 + sigma noise.

    Four choices make the models of the literature: DDPM (the defaults; Ho et al. 2020, 2006.11239, algorithm 1), flow
    matching (process=rectified_flow, prediction=flow; 2210.02747), EDM (process=noise_level, prediction=preconditioned,
    times=log_normal; 2206.00364), and what lies between.

    Attributes:
      model: the denoiser; filled in by the experiment.
      process: alpha and sigma.
      prediction: F: noise, x_0, v, score, flow, or EDM's.
      weighting: of the loss over times.
      times: density of training times.
      label_dropout: probability with which a label is replaced by the null class in training, for classifier-free
        guidance (Ho & Salimans 2022, 2207.12598, algorithm 1); of a model without that class there is none.
      variance_weight: lambda of a learned variance's bound, per step of the chain (improved DDPM, 2102.09672, equation
        16).
      show: samples in the default figure.
    """

    unit: ClassVar[str] = "mean squared error of the prediction"

    process: Process = VariancePreserving()
    prediction: Prediction = Noise()
    weighting: Weighting = Simple()
    times: TrainingTimes = UniformTimes()
    label_dropout: PartialShare = 0.1
    variance_weight: Share = 0.001
    show: Count = 40

    def __post_init__(self) -> None:
        self.prediction.check(self.process)
        self.weighting.check(self.process, self.prediction)
        self.times.check(self.process)

    @property
    def sampler(self) -> Sampler:
        """DDIM in 50 steps."""
        return DDIM()

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Samples; of points over the real density, with the score beside that of the noisy mixture."""
        return (GeneratedPoints(), DiffusionScore()) if self._of_points else (Samples(max(self.show, 1), fixed=True),)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Distances of generated points from real ones."""
        return (PointDistances(),) if self._of_points else ()

    @property
    def _of_points(self) -> bool:
        return self.model is not None and point_features(self.model) is not None

    @property
    def classes(self) -> int | None:
        """The classes that the model is conditioned on; None for an unconditional one."""
        return class_count(self.model)

    @property
    def learned_variance(self) -> bool:
        """True if the model gives a variance beside its prediction."""
        return bool(getattr(self.model, "learned_variance", False))

    def arguments(self, batch: Batch) -> tuple:
        x, time, condition = calls.denoiser(batch, self.classes)
        if condition is not None and "weights" in batch:  # the label of an example without weight may be any number
            condition = Condition(label=jnp.where(batch["weights"] > 0, condition.label, 0))
        return x, time, condition

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        times, noise, labels, dropout = jax.random.split(key, 4)
        clean, _, condition = self.arguments(batch)
        time = self.times.draw(self.process, times, len(clean))
        if condition is not None and has_null_class(self.model):
            dropped = jax.random.bernoulli(labels, self.label_dropout, time.shape)
            condition = Condition(label=jnp.where(dropped, self.classes, condition.label))
        drawn = jax.random.normal(noise, clean.shape, at_least_float32(clean).dtype)
        apply = lambda *arguments: self.apply(variables, *arguments, key=dropout)
        metrics, updates = self._terms(apply, batch, clean, condition, time, drawn)
        return metrics["loss"], (metrics, updates)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """The loss ("loss") at equally spread times and with the same noise each time, with every label.

        With a mixture's `centres` and `std` in the batch also "score_error", the squared error of the score over that
        of a score of 0, weighted by sigma^2: 0 at the best, which the loss never reaches.
        """
        clean, _, condition = self.arguments(batch)
        order = jax.random.permutation(jax.random.key(1), len(clean))
        time = self.times.spread(self.process, len(clean))[order]
        noise = jax.random.normal(jax.random.key(0), clean.shape, at_least_float32(clean).dtype)
        apply = lambda *arguments: (self.model.apply(variables, *arguments), {})
        return self._terms(apply, batch, clean, condition, time, noise, batch.get("centres"))[0]

    def denoised(self, variables: Any, x: jax.Array, time: Any, condition: Condition | None = None) -> jax.Array:
        """D = E[x_0 | x_t = x], which the model's output stands for, whatever it predicts.

        Args:
          variables: of the model.
          x: noisy examples, "batch ...".
          time: of the process, one for all of them or "batch".
          condition: of the model.
        """
        time = jnp.broadcast_to(jnp.asarray(time, at_least_float32(x).dtype), x.shape[:1])
        by_row = lambda part: part.reshape(-1, *(1,) * (x.ndim - 1))
        alpha, sigma = map(by_row, self.process.coefficients(time))
        rates = tuple(map(by_row, self.process.rates(time))) if self.prediction.uses_rates else None
        made = self.prediction.preconditioning(alpha, sigma, rates)
        output = self.model.apply(variables, made.scale * x, self.process.conditioning(time), condition)
        if self.learned_variance:
            output, _ = jnp.split(output, 2, axis=-1)
        return made.skip * x + made.out * output

    def _terms(
        self,
        apply: Any,
        batch: Batch,
        clean: jax.Array,
        condition: Any,
        time: jax.Array,
        noise: jax.Array,
        centres: Any = None,
    ) -> tuple[dict[str, Pair], dict]:
        """Metrics at given times and noise, and updated collections."""
        clean = clean.astype(noise.dtype)
        by_row = lambda x: x.reshape(-1, *(1,) * (clean.ndim - 1))
        alpha, sigma = (x.astype(noise.dtype) for x in self.process.coefficients(time))
        rates = self.process.rates(time) if self.prediction.uses_rates else None
        made = self.prediction.preconditioning(alpha, sigma, rates)
        weight = self.weighting(self.process, self.prediction, time, alpha, sigma, made)
        a, s = by_row(alpha), by_row(sigma)
        x = a * clean + s * noise
        output, updates = apply(by_row(made.scale) * x, self.process.conditioning(time), condition)
        output = at_least_float32(output)
        if self.learned_variance:
            output, where = jnp.split(output, 2, axis=-1)
        target = self.prediction.target(clean, noise, a, s, None if rates is None else tuple(map(by_row, rates)))
        mean = lambda each: each.reshape(len(clean), -1).mean(1)
        each = weight * mean(jnp.square(output - target))
        rows = batch["weights"] if "weights" in batch else jnp.ones(len(clean), each.dtype)
        denoised = by_row(made.skip) * x + by_row(made.out) * output
        metrics = {}
        if self.learned_variance:
            before = tuple(map(by_row, self.process.coefficients(time - 1)))
            stopped = jax.lax.stop_gradient(denoised)
            bits = mean(bound_term(clean, x, stopped, where, (a, s), before, 2 / 255))
            metrics["bound"] = weighted(bits, rows)
            each = each + self.variance_weight * self.process.last * bits
        if centres is not None:
            some = jnp.where(a > 0, a, 1)  # noise alone, where there is no data, is normal
            score = mixture_score(x / some, centres, jnp.sqrt(jnp.square(batch["std"]) + jnp.square(s / some))) / some
            score = jnp.where(a > 0, score, -x / s**2)
            error = (a * denoised - x) / s**2 - score
            summed = lambda field: weighted(jnp.square(s * field).sum(1), rows)[0]
            metrics["score_error"] = (summed(error), summed(score))
        return metrics | {"loss": weighted(each, rows)}, updates

    def check(self, data: Any) -> None:
        """The data must be points or images of the model's shape, images in [-1, 1], and labels within its classes."""
        name = next((name for name in ("x", "images") if name in data.shapes), None)
        if name is None:
            raise UsageError(
                f"the objective 'diffusion' takes points or images, and the data has {', '.join(data.shapes)}; "
                "expected x or images, such as arch_jax.Ring()"
            )
        shape = data.shapes[name][0][1:]
        features = point_features(self.model)
        if (features is None) != (name == "images") or (features is not None and features != shape[-1]):
            takes = "images" if features is None else f"points of {features} coordinates"
            raise UsageError(f"the model takes {takes}, and the data has {name} of shape {shape}; expected them alike")
        if name == "images":
            check_example(self.model, shape)
            if (data.low, data.high) != (-1, 1):
                raise UsageError(
                    f"pixels go from {data.low:g} to {data.high:g}, and a diffusion takes -1 to 1, about which "
                    "noise is symmetric; set data.low=-1 and data.high=1"
                )
        if self.classes is not None and "labels" not in data.shapes:
            raise UsageError(f"model.classes is {self.classes}, and the data has no labels; set model.classes=none")
        if self.classes is not None and data.classes is not None and data.classes > self.classes:
            raise UsageError(
                f"model.classes is {self.classes}, but the labels go up to {data.classes - 1}; "
                f"set model.classes={data.classes}"
            )
        if self.learned_variance and not self.process.discrete:
            raise UsageError(
                "model.learned_variance is true and the process is continuous; expected model.learned_variance=false, "
                "or a chain of steps such as process=variance_preserving"
            )
