"""Regression: numbers read off a sequence, by least squares."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.gradient_reach import GradientReach
from arch_jax.figures.regression import Regression
from arch_jax.inputs import calls
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.losses import weighted
from arch_jax.protocols import check_example
from arch_jax.ranges import Count


@component("regress", kind="objective")
@dataclasses.dataclass(frozen=True)
class Regress(ObjectiveBase):
    """The mean over a row's answers of (answer - target)^2, over the rows that have weight.

    Attributes:
      model: what answers; filled in by the experiment.
      tolerance: an answer counts as right if it is no farther than this from its target (Hochreiter & Schmidhuber 1997,
        experiment 4: 0.04).
      show_rows: validation rows in the default figures; gradients are averaged over at most 64 of them.
    """

    unit: ClassVar[str] = "of squared error"

    tolerance: float = 0.04
    show_rows: Count = 500

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise UsageError(f"tolerance is {self.tolerance}; expected a number of at least 0, such as 0.04")
        if self.show_rows < 1:
            raise UsageError(f"show_rows is {self.show_rows}; expected at least 1")

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Predictions over targets; and, of whole sequences, how far back their gradient reaches."""
        return Regression(self.show_rows), GradientReach(min(64, self.show_rows))

    def arguments(self, batch: Batch) -> tuple:
        return calls.sequence_reader(batch)

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
        each = {
            "loss": jnp.mean(jnp.square(off), axis=1),
            "absolute_error": jnp.mean(off, axis=1),
            "accuracy": jnp.all(off <= self.tolerance, axis=1).astype(off.dtype),
        }
        return {name: weighted(row, batch["weights"]) for name, row in each.items()}

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
        check_example(self.model, data.shapes["x"][0][1:])
