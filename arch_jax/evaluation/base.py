"""The contract of a measure: a number about a trained model that no sum over batches gives."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.protocols import require


@dataclasses.dataclass(frozen=True)
class Measure:
    """Base of all measures; a new one overrides `__call__`, and `check` where a setting can be refused early.

    Attributes:
      when: "end" after the last step only, or "evaluation" at every evaluation.
    """

    when: Literal["end", "evaluation"] = "end"

    #: Attributes that it uses, which not every objective or model has.
    of_objective: ClassVar[tuple[str, ...]] = ()
    of_model: ClassVar[tuple[str, ...]] = ()

    def check(self, task: Any, sampler: Any, data: Any) -> None:
        """Refuses what can't be measured, before the training rather than after it.

        Raises:
          UsageError: a setting, an objective, a sampler or data that the measure can't use.
        """
        require(self, "objective", task, self.of_objective)
        require(self, "model", task.model, self.of_model)

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, float]:
        """Measures a model.

        Args:
          task: the objective with its model (`task.model`).
          variables: of the model, those that are evaluated.
          sampler: of the run; draws as `sampler(task, variables, data, key, count)`.
          data: the corpus.
          key: of everything random; the same at every evaluation of a run.

        Returns:
          Name -> number; nothing where the data does not have what it takes. The names stand beside the validation
          metrics: in `metrics.jsonl`, `Published`, `ablate --metric` and `compare`.
        """
        raise TypeError(f"{type(self).__name__} must say what it measures")


def measured(
    measures: Iterable[Measure],
    task: Any,
    variables: Any,
    sampler: Any,
    data: Any,
    key: jax.Array,
    taken: Iterable[str] = (),
    failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, float]:
    """The numbers of several measures, by name.

    Args:
      measures, task, variables, sampler, data, key: as for `Measure`.
      taken: names that others have, such as those of the validation metrics.
      failed: called with what could not be measured, such as "the measure Translation", and its exception, instead of
        raising it; the other measures are taken all the same.

    Raises:
      UsageError: a name that is taken or given twice, or something else than numbers by name.
    """
    found: dict[str, float] = {}
    for measure in measures:
        kind = type(measure).__name__
        try:
            new = measure(task, variables, sampler, data, key)
            found |= _checked(kind, new, {*found, *taken})
        except Exception as problem:
            if failed is None:
                raise
            failed(f"the measure {kind}", problem)
    return found


def _checked(kind: str, new: Any, taken: set[str]) -> dict[str, float]:
    """The numbers that a measure of that kind gave, where they are numbers under names that are free."""
    if not isinstance(new, Mapping):
        raise UsageError(f"the measure {kind} gives {type(new).__name__}; expected numbers by name")
    for name, value in new.items():
        if name in taken:
            raise UsageError(f"the measure {kind} gives {name!r}, which is a metric already; expected another name")
        if np.ndim(value) or isinstance(value, str) or value is None:
            raise UsageError(f"the measure {kind} gives {name!r} as {value!r:.80}; expected a number")
    return {name: float(value) for name, value in new.items()}


@functools.partial(jax.jit, static_argnums=0)
def fresh(task: Any, key: jax.Array, batch: Any) -> Any:
    """Freshly initialised variables, for comparison with the trained ones; compiled once for equal tasks."""
    return task.init(key, batch)
