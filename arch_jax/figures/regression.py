"""Predictions of a regression over their targets."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.canvas import new_figure


@component("regression", kind="figure")
@dataclasses.dataclass(frozen=True)
class Regression(Figure):
    """Predictions over targets.

    Attributes:
      count: validation rows.
    """

    arrays: ClassVar[tuple[str, ...]] = ("targets",)

    count: int = 500

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"count is {self.count}; expected at least 1")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        answers, targets = [], []
        for batch in data.validation():
            real = np.asarray(batch["weights"]) > 0
            answers.append(np.asarray(task.outputs(variables, *task.arguments(batch)), np.float32)[real])
            targets.append(np.asarray(batch["targets"], np.float32)[real].reshape(answers[-1].shape))
            if sum(map(len, answers)) >= self.count:
                break
        answers, targets = (np.concatenate(rows)[: self.count] for rows in (answers, targets))
        return {"answers": regression_figure(answers, targets)}


def regression_figure(answers: np.ndarray, targets: np.ndarray) -> Any:
    """A figure of predictions over targets, both "rows outputs"."""
    figure = new_figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    low, high = float(targets.min()), float(targets.max())
    axes.plot([low, high], [low, high], color="grey", linewidth=0.8, zorder=0)
    for i in range(answers.shape[1]):
        axes.scatter(targets[:, i], answers[:, i], s=5, alpha=0.5, color=f"C{i}", linewidths=0)
    error = float(np.mean(np.square(answers - targets)))
    axes.set_title(
        f"{len(answers)} validation rows: mean squared error {error:.3g}, variance {targets.var():.3g}", size=9
    )
    axes.set(xlabel="target", ylabel="prediction")
    return figure
