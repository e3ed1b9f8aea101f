"""Regression: numbers read off a sequence, by least squares; and how far back the answer's gradient reaches."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.evaluation.gradient_reach import gradient_by_distance
from arch_jax.fields import component
from arch_jax.figures.gradient_reach import reach_figure
from arch_jax.figures.regression import regression_figure
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair, compiled


@component("regress", kind="objective")
@dataclasses.dataclass(frozen=True)
class Regress(ObjectiveBase):
    """The mean over a row's answers of (answer - target)^2, over the rows that have weight.

    Attributes:
      model: what answers; filled in by the experiment.
      tolerance: an answer counts as right if it is no farther than this from its target (Hochreiter & Schmidhuber 1997,
        experiment 4: 0.04).
      show_rows: how many validation rows `show` draws, and averages gradients over at most 64 of.
    """

    unit: ClassVar[str] = "of squared error"

    tolerance: float = 0.04
    show_rows: int = 500

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise UsageError(f"tolerance is {self.tolerance}; expected a number of at least 0, such as 0.04")
        if self.show_rows < 1:
            raise UsageError(f"show_rows is {self.show_rows}; expected at least 1")

    def arguments(self, batch: Batch) -> tuple:
        return (batch["x"], batch["segment_ids"]) if "segment_ids" in batch else (batch["x"],)

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        answers, updates = self.apply(variables, *self.arguments(batch), key=key)
        metrics = self._metrics(answers, batch)
        return metrics["loss"], (metrics, updates)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """Mean squared error ("loss"), mean absolute error, and the share of rows all of whose answers are right."""
        return self._metrics(self.model.apply(variables, *self.arguments(batch)), batch)

    def _metrics(self, answers: jax.Array, batch: Batch) -> dict[str, Pair]:
        answers = answers.astype(jnp.promote_types(answers.dtype, jnp.float32))
        off = jnp.abs(answers - batch["targets"].reshape(answers.shape))
        weights = batch["weights"].astype(off.dtype)
        each = {
            "loss": jnp.mean(jnp.square(off), axis=1),
            "absolute_error": jnp.mean(off, axis=1),
            "accuracy": jnp.all(off <= self.tolerance, axis=1).astype(off.dtype),
        }
        # A row without weight may have anything in it, and 0 * NaN is NaN.
        return {
            name: (jnp.sum(jnp.where(weights > 0, row * weights, 0)), jnp.sum(weights)) for name, row in each.items()
        }

    def check(self, data: Any) -> None:
        """The data must have targets, as many in a row as the model gives answers."""
        if "x" not in data.shapes or "targets" not in data.shapes:
            raise UsageError(
                f"the objective 'regress' takes numbers with targets, and the data has {', '.join(data.shapes)}; "
                "expected x and targets, such as arch_jax.AddingProblem()"
            )
        asked = int(np.prod(data.shapes["targets"][0][1:]))
        if asked != self.model.outputs:
            raise UsageError(
                f"model.outputs is {self.model.outputs}, but the data has {asked} targets a row; "
                f"set model.outputs={asked}"
            )
        if hasattr(self.model, "check"):
            self.model.check(data.shapes["x"][0][1:])

    def show(self, variables: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        """Answers against targets; and, of whole sequences, the gradient's norm against distance, now and at first."""
        answers, targets, first = [], [], None
        for batch in data.validation():
            real = np.asarray(batch["weights"]) > 0
            given = self.arguments(batch)
            answers.append(np.asarray(self.outputs(variables, *given), np.float32)[real])
            targets.append(np.asarray(batch["targets"], np.float32)[real].reshape(answers[-1].shape))
            first = batch if first is None else first
            if sum(map(len, answers)) >= self.show_rows:
                break
        answers, targets = (np.concatenate(rows)[: self.show_rows] for rows in (answers, targets))
        shown = {"answers": regression_figure(answers, targets)}
        x = first["x"][np.asarray(first["weights"]) > 0][: min(64, self.show_rows)]
        if x.ndim == 3 and "segment_ids" not in first:
            # Of one key throughout: from picture to picture of the film it is the trained model that moves.
            fresh = compiled(self, "init", jax.random.key(0), first)
            trained, at_first = (compiled(self, "_reach", v, x) for v in (variables, fresh))
            shown["gradient"] = reach_figure({"trained": trained, "freshly drawn": at_first})
        return shown

    def _reach(self, variables: Any, x: jax.Array) -> jax.Array:
        """`gradient_by_distance` of each row's answer."""
        return gradient_by_distance(lambda x: self.model.apply(variables, x), x)
