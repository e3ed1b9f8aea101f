"""The validation metrics on further corpora, such as longer sequences than those trained on."""

import dataclasses
import functools
from typing import Any

import jax

from arch_jax.evaluation.base import Measure
from arch_jax.fields import component


@component("further_corpora", kind="measure")
@dataclasses.dataclass(frozen=True)
class FurtherCorpora(Measure):
    """The objective's metrics on each of the data's `elsewhere`: "accuracy_at_4096"; nothing where it has none."""

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, float]:
        found = {}
        for name, corpus in data.elsewhere.items():
            sums = [_evaluated(task, variables, batch) for batch in corpus.validation()]
            for metric in sums[0]:
                total, weight = (sum(float(pairs[metric][i]) for pairs in sums) for i in (0, 1))
                found[f"{metric}_{name}"] = total / weight
        return found


@functools.partial(jax.jit, static_argnums=0)
def _evaluated(task: Any, variables: Any, batch: Any) -> Any:
    return task.evaluate(variables, batch)
