"""The norm of an output's gradient against the distance in time."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.evaluation.base import fresh
from arch_jax.evaluation.gradient_reach import of_sequences, of_tokens
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.canvas import new_figure


@component("gradient_reach", kind="figure")
@dataclasses.dataclass(frozen=True)
class GradientReach(Figure):
    """Reach of the last output's gradient back in a sequence, after training and freshly initialised.

    Of a language model it is the gradient of the last target's nats in the embedded tokens, of a regression that of
    its outputs in the inputs; nothing of other data, nor of packed sequences.

    Attributes:
      rows: validation rows that the norm is the mean over, at most those of a batch.
    """

    rows: int = 64

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise UsageError(f"rows is {self.rows}; expected at least 1")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        batch = next(iter(data.validation()))
        if "segment_ids" in batch:
            return {}
        # One key at every evaluation: in the film it is the trained model that moves.
        initial = fresh(task, jax.random.key(0), batch)
        if "tokens" in batch and "targets" in batch:
            rows = batch["tokens"][: self.rows], batch["targets"][: self.rows, -1]
            norms = [of_tokens(task.model, v, *rows) for v in (variables, initial)]
        elif "x" in batch and np.ndim(batch["x"]) == 3:
            x = batch["x"][np.asarray(batch["weights"]) > 0][: self.rows]
            norms = [of_sequences(task.model, v, x) for v in (variables, initial)]
        else:
            return {}
        return {"gradient": reach_figure(dict(zip(("trained", "freshly initialised"), norms)))}


def reach_figure(norms: Mapping[str, Any]) -> Any:
    """A figure of such norms over the distance, on a logarithmic axis.

    Args:
      norms: name -> as `gradient_by_distance` gives them.
    """
    figure = new_figure(figsize=(6.0, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in norms.items():
        curve = np.asarray(curve, np.float64)
        # On a logarithmic axis 0 has no place: there the curve ends.
        axes.plot(np.arange(len(curve)), np.where(curve > 0, curve, np.nan), label=name, linewidth=1)
    axes.set_yscale("log")
    axes.set(xlabel="steps before the last one", ylabel="norm of the output's gradient")
    axes.set_title("how far back the output's gradient reaches, mean over validation rows", size=9)
    axes.legend(fontsize=8)
    return figure
