"""The settings that every diffusion sampler has, and the one compiled program that all of them are."""

import dataclasses
import functools
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import Kind
from arch_jax.figures.image_grid import image_grid, in_rows
from arch_jax.ops.diffusion import solve
from arch_jax.ops.diffusion.condition import Condition
from arch_jax.ops.diffusion.grids import Spacing, grid
from arch_jax.ops.diffusion.guidance import class_gradient, guided, rescaled
from arch_jax.ops.diffusion.thresholds import dynamic_threshold, static_threshold
from arch_jax.protocols import class_count, example_shape, has_null_class
from arch_jax.ranges import Count, Positive, Range, Share, Signed
from arch_jax.sampling.base import Sampler, check_count, keys_by_row
from arch_jax.sampling.diffusion.classifier import check_classifier


@dataclasses.dataclass(frozen=True)
class DiffusionSampler(Sampler):
    """Base of the diffusion samplers; a new one overrides `coefficients`.

    All calls of the network are one compiled scan over a table of coefficients, with the weights and the table as
    arguments: a second sample, another seed, or another sampler of as many calls compiles nothing.

    Attributes:
      steps: from noise to data; most samplers call the network once a step.
      spacing: of the times: "trailing", "leading", "linspace", "quadratic", "karras" or "exponential"; see
        `arch_jax.ops.diffusion.grids`. None takes that of the process: "karras" of EDM's, "trailing" of the others.
      guidance: scale s of classifier-free guidance: 1 is the conditional model, 0 the unconditional one.
      guidance_rescale: share of the rescaling to the conditional output's standard deviation (2305.08891, section 3.4).
      guidance_interval: noise levels sigma / alpha between which guidance applies (Kynkäänniemi et al. 2024,
        2404.07724); None applies it everywhere.
      guidance_batched: whether both of guidance's outputs come of one call with twice the rows, rather than of two.
      clip: D is clipped to [-clip, clip] at every call; None leaves it.
      clip_quantile: of the dynamic threshold, in which `clip` is the smallest bound; None is a fixed one.
      classifier: of noisy images, trained with the same process (`noisy_classification`); its gradient guides towards
        the labels, also a model without classes (Dhariwal & Nichol 2021, 2105.05233, section 4). None does without.
      classifier_scale: scale s of that gradient, within `guidance_interval`.
      labels: classes to draw, in turn; None takes each class in turn.
      batch: samples drawn at a time, which changes none of them.
    """

    of_objective: ClassVar[tuple[str, ...]] = ("process", "prediction")
    #: Order of convergence on smooth problems, in the size of the steps; `arch-jax certify` measures it.
    order_seen: ClassVar[float] = 1.0
    #: Whether guidance ends in the tilted law p(x) p(c | x)^s, as Langevin dynamics alone does; see `arch-jax certify`.
    keeps_tilt: ClassVar[bool] = False
    uses_data: ClassVar[bool] = False

    steps: int = 50
    spacing: Spacing | None = None
    guidance: Signed = 1.0
    guidance_rescale: Share = 0.0
    guidance_interval: tuple[float, float] | None = None
    guidance_batched: bool = True
    clip: Positive | None = None
    clip_quantile: Annotated[float, Range(above=0, at_most=1)] | None = None
    classifier: Annotated[Any, Kind("frozen")] | None = None
    classifier_scale: Signed = 1.0
    labels: tuple[Count, ...] | None = None
    batch: int = 256

    def __post_init__(self) -> None:
        if self.clip_quantile is not None and self.clip is None:
            raise UsageError(f"clip_quantile is {self.clip_quantile} without clip; expected clip=1 for data in [-1, 1]")
        if self.guidance_interval is not None and not self.guidance_interval[0] < self.guidance_interval[1]:
            raise UsageError(f"guidance_interval is {self.guidance_interval}; expected two increasing noise levels")
        if self.classifier is None and self.classifier_scale != 1:
            raise UsageError(
                f"classifier_scale is {self.classifier_scale} without classifier; expected the folder of a run with "
                "the objective noisy_classification as classifier, or classifier_scale=1"
            )
        if self.labels is not None and not self.labels:
            raise UsageError("labels is empty; expected at least one class, or none for each in turn")

    def coefficients(self, process: Any, times: np.ndarray) -> solve.StepCoefficients:
        """The coefficients of the sampler on a grid of times."""
        raise TypeError(f"{type(self).__name__} must say what its steps are")

    def grid(self, process: Any) -> np.ndarray:
        """The times of the steps, and the end."""
        return grid(process, self.steps, self.spacing or process.spacing)

    def check(self, task: Any, data: Any) -> None:
        """Refuses guidance without a null class, labels without classes, and times that the process does not have."""
        super().check(task, data)
        task.prediction.check(task.process)
        self.coefficients(task.process, self.grid(task.process))
        if self.classifier is not None:
            check_classifier(self.classifier, task, data)
        if class_count(task.model) is None and self.guidance != 1:
            raise UsageError(
                f"sampler.guidance is {self.guidance}, and the model has no classes to be guided by; use 1"
            )
        classes = self._classes(task)
        if classes is None and self.labels is not None and self.classifier is None:
            raise UsageError(f"sampler.labels is {self.labels}, and the model has no classes; expected none")
        if classes is not None and max(self.labels or (0,)) >= classes:
            raise UsageError(f"sampler.labels has {max(self.labels)}; expected classes from 0 to {classes - 1}")
        if self.guidance != 1 and not has_null_class(task.model):
            raise UsageError(
                f"sampler.guidance is {self.guidance}, and the model has no null class; expected guidance=1, or a "
                "model trained with model.null_class=true"
            )

    def __call__(self, task: Any, variables: Any, data: Any, key: jax.Array, count: int = 1) -> dict[str, Any]:
        """Images as a figure ("samples") and an array ("images"); or points as lines ("points") and "coordinates".

        Of a model with classes also "labels", the class that each was drawn for.
        """
        count = check_count(count)
        labels = self.labels_of(task, count)
        made = self.draw(task, variables, key, count, labels)
        told = {} if labels is None else {"labels": labels}
        if made.ndim == 4:
            rows = in_rows(made) if labels is None else _by_label(made, labels)
            figure = image_grid({name: data.unit_range(row) for name, row in rows.items()})
            return {"samples": figure, "images": made, **told}
        lines = (" ".join(f"{number:.6g}" for number in np.ravel(row)) for row in made)
        return {"points": "\n".join(lines), "coordinates": made, **told}

    def labels_of(self, task: Any, count: int) -> np.ndarray | None:
        """The class of each sample; None for a model without classes that no classifier guides."""
        classes = self._classes(task)
        if classes is None:
            return None
        chosen = np.arange(classes) if self.labels is None else np.asarray(self.labels)
        return np.resize(chosen, count).astype(np.int32)

    def _classes(self, task: Any) -> int | None:
        """The classes that samples can be of, of the model or else of an opened classifier; None without any."""
        classes = class_count(task.model)
        if classes is None and self.classifier is not None:
            classes = class_count(self.classifier.model)
        return classes

    def draw(
        self,
        task: Any,
        variables: Any,
        key: jax.Array,
        count: int,
        labels: np.ndarray | None = None,
        path: bool = False,
        begin: Any = None,
    ) -> Any:
        """Samples as an array, "count ...".

        Args:
          task: the objective with its model.
          variables: of the model.
          key: of the noise: that of sample i depends on it and on i alone.
          count: how many.
          labels: class of each, "count".
          path: whether the points at every call are given too, "calls count ...".
          begin: x at the first time, in place of noise, "count ...".

        Returns:
          The samples, in float32; with `path`, (samples, path).
        """
        process, keys = task.process, keys_by_row(key, count)
        x = process.prior_std * _noise(keys, example_shape(task.model)) if begin is None else begin
        return self._run(task, variables, keys, x, self.coefficients(process, self.grid(process)), labels, path)

    def edit(
        self,
        task: Any,
        variables: Any,
        key: jax.Array,
        examples: Any,
        strength: float | int = 0.6,
        labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """Image to image: examples with noise of a part of the way, denoised from there.

        Source: SDEdit, Meng et al. 2022 (2108.01073, section 3).

        Args:
          task, variables, key, labels: as for `draw`.
          examples: "count ...", scaled as the data is.
          strength: share of the steps that are taken, above 0; 1 is all of them, from noise alone but for what is left
            of the example there.

        Raises:
          UsageError: a strength out of range, or of less than one step.
        """
        process, times = task.process, self.grid(task.process)
        steps = len(times) - 1
        taken = round(strength * steps) if 0 < strength <= 1 else 0
        if not taken:
            raise UsageError(
                f"strength is {strength} of {steps} steps; expected more than 0 and at most 1, and at least a step, "
                f"{1 / steps:.2g}"
            )
        times = times[steps - taken :]
        alpha, sigma = process.coefficients(times[0], np)
        examples = jnp.asarray(examples, jnp.float32)
        keys = keys_by_row(key, len(examples))
        x = float(alpha) * examples + float(sigma) * _noise(keys, examples.shape[1:])
        return self._run(task, variables, keys, x, self.coefficients(process, times), labels)

    def inpaint(
        self,
        task: Any,
        variables: Any,
        key: jax.Array,
        examples: Any,
        mask: Any,
        labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples of which a part is given, by replacement at every call (2011.13456, appendix I.2).

        The given part is told to the network with noise of each call's level, which is exact only where the two parts
        are independent; they come to agree over the steps.

        Args:
          task, variables, key, labels: as for `draw`.
          examples: "count ...", of which the masked part counts.
          mask: 1 where the example is given, 0 where it is drawn; broadcastable to the examples.

        Raises:
          UsageError: a sampler of several calls a step.
        """
        process, examples = task.process, jnp.asarray(examples, jnp.float32)
        rows = self.coefficients(process, self.grid(process))
        if not np.array_equal(rows.point, rows.anchor):
            raise UsageError(
                f"inpainting replaces a part at each step, and {type(self).__name__} has several calls in one; "
                "expected a sampler of one call a step, such as ddim, ddpm or dpm_solver"
            )
        keys = keys_by_row(key, len(examples))
        known = (examples, jnp.broadcast_to(jnp.asarray(mask, jnp.float32), examples.shape))
        x = process.prior_std * _noise(keys, examples.shape[1:])
        return self._run(task, variables, keys, x, rows, labels, known=known)

    def _run(
        self,
        task: Any,
        variables: Any,
        keys: jax.Array,
        x: Any,
        rows: solve.StepCoefficients,
        labels: np.ndarray | None,
        path: bool = False,
        known: tuple[jax.Array, jax.Array] | None = None,
    ) -> Any:
        """All rows of a table from x, some examples at a time."""
        if self.classifier is not None and labels is None:
            raise UsageError("there is a classifier and no label to guide to; expected labels, one for each sample")
        scales = self._scales(task.process, rows.times, self.guidance, 1.0)
        towards = None
        if self.classifier is not None:
            towards = self._scales(task.process, rows.times, self.classifier_scale, 0.0)
        table = solve.step_table(rows, task.process, task.prediction, scales, classifier=towards)
        settings = _Settings(
            "none" if self.guidance == 1 else "batched" if self.guidance_batched else "separate",
            self.guidance_rescale,
            self.clip,
            self.clip_quantile,
            rows.noisy,
            path,
            self.classifier,
        )
        x, count = jnp.asarray(x, jnp.float32), len(keys)
        # The last batch is filled up, so that all of them are one program.
        size = min(self.batch, count)
        padded = np.arange(-(-count // size) * size) % count
        found = []
        for start in range(0, len(padded), size):
            part = padded[start : start + size]
            told = None if labels is None else Condition(label=jnp.asarray(labels[part]))
            goal = None if self.classifier is None else told.label
            if goal is not None and class_count(task.model) is None:
                told = None
            given = None if known is None else (known[0][part], known[1][part])
            made = _solved(task.model, settings, variables, table, x[part], keys[part], told, given, goal)
            found.append(jax.tree.map(np.asarray, made))
        made = np.concatenate([one[0] for one in found])[:count]
        return (made, np.concatenate([one[1] for one in found], axis=1)[:, :count]) if path else made

    def _scales(self, process: Any, times: np.ndarray, scale: float, without: float) -> np.ndarray:
        """The scale of guidance at every call; outside of the interval that which is none."""
        scales = np.full(len(times), float(scale))
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            ratios = process.ratios(times)
            scales = np.where((ratios > low) & (ratios <= high), scales, without)
        return scales


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The part of a sampler that a compiled program depends on."""

    guidance: Literal["none", "batched", "separate"]
    rescale: float
    clip: float | None
    clip_quantile: float | None
    noisy: bool
    path: bool
    classifier: Any


@functools.partial(jax.jit, static_argnums=(0, 1))
def _solved(
    model: Any,
    settings: _Settings,
    variables: Any,
    table: Any,
    x: jax.Array,
    keys: jax.Array,
    condition: Any,
    known: Any,
    goal: Any,
) -> tuple[jax.Array, jax.Array | None]:
    unused = table.bounds is None and getattr(model, "learned_variance", False)

    def called(*arguments: Any) -> jax.Array:
        output = model.apply(variables, *arguments)
        return jnp.split(output, 2, axis=-1)[0] if unused else output

    def network(x: jax.Array, time: jax.Array, scale: jax.Array) -> jax.Array:
        if settings.guidance == "none":
            return called(x, time, condition)
        null = null_of(model, condition)
        if settings.guidance == "batched":
            both = jax.tree.map(lambda *one: jnp.concatenate(one), (x, time, condition), (x, time, null))
            with_it, without = jnp.split(called(*both), 2)
        else:
            with_it, without = (called(x, time, told) for told in (condition, null))
        rest = []
        if table.bounds is not None:  # guidance is of the prediction; the variance is the conditional model's
            (with_it, learned), (without, _) = (jnp.split(one, 2, axis=-1) for one in (with_it, without))
            rest = [learned]
        output = guided(with_it, without, scale)
        if settings.rescale:
            output = rescaled(output, with_it, settings.rescale)
        return jnp.concatenate([output, *rest], axis=-1)

    towards = None
    if settings.classifier is not None:
        towards = lambda x, time: class_gradient(lambda x: settings.classifier.apply(variables, x, time), x, goal)
    threshold = None
    if settings.clip_quantile is not None:
        threshold = lambda clean: dynamic_threshold(clean, settings.clip_quantile, settings.clip)
    elif settings.clip is not None:
        threshold = lambda clean: static_threshold(clean, settings.clip)
    chosen = {"noisy": settings.noisy, "threshold": threshold, "path": settings.path}
    return solve.solve(table, network, x, keys, **chosen, known=known, towards=towards)


def _noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers, which no call of the network draws again."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 2**31), shape))(keys)


def null_of(model: Any, condition: Condition) -> Condition:
    """The condition that stands for none: every label is the null class."""
    return condition.replace(label=jnp.full_like(condition.label, class_count(model)))


def _by_label(images: np.ndarray, labels: np.ndarray, most: int = 12) -> dict[str, np.ndarray]:
    """Images in one row for each class, at most `most` of them."""
    return {str(label): images[labels == label][:most] for label in dict.fromkeys(labels.tolist())}
