"""A model's outputs on validation examples: what a classifier or a regression has for samples."""

import dataclasses
from typing import Any

import jax
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.sampling.base import Sampler, check_count


@component("predict", kind="sampler")
@dataclasses.dataclass(frozen=True)
class Predict(Sampler):
    """Outputs for the first validation examples, beside their labels or targets."""

    def __call__(self, task: Any, variables: Any, data: Any, key: jax.Array, count: int = 1) -> dict[str, Any]:
        """{"predictions": a line for each example, "outputs": "count outputs"}; fewer where the data has fewer."""
        count = check_count(count)
        if not {"labels", "targets"} & data.shapes.keys():
            raise UsageError(
                f"the data has neither labels nor targets to predict, but {', '.join(data.shapes)}; expected another "
                "sampler, such as one that the objective names in its property `sampler`"
            )
        outputs, truths = [], []
        for batch in data.validation():
            found = np.asarray(task.outputs(variables, *task.arguments(batch)))
            weights = np.asarray(batch["weights"] if "weights" in batch else np.ones(len(found)))
            counted = np.flatnonzero(weights.reshape(len(weights), -1).any(axis=1))
            found = found[counted]
            truth = np.asarray(batch["labels" if "labels" in batch else "targets"])[counted]
            outputs.extend(found)
            truths.extend(truth)
            if len(outputs) >= count:
                break
        outputs, truths = np.stack(outputs[:count]), truths[:count]
        lines = [f"{i}: {self._line(data, row, truth)}" for i, (row, truth) in enumerate(zip(outputs, truths))]
        return {"predictions": "\n".join(lines), "outputs": outputs}

    @staticmethod
    def _line(data: Any, row: np.ndarray, truth: Any) -> str:
        if np.ndim(truth) or not np.issubdtype(np.asarray(truth).dtype, np.integer):
            numbers = lambda x: " ".join(f"{float(v):.4g}" for v in np.ravel(x))
            return f"{numbers(row)} (is {numbers(truth)})"
        name = lambda label: str(label) if data.class_names is None else str(data.class_names[label])
        scores = np.exp(row - row.max())
        guess = int(row.argmax())
        wrong = "" if guess == truth else f" (is {name(int(truth))})"
        return f"{name(guess)}, probability {scores[guess] / scores.sum():.3f}{wrong}"
