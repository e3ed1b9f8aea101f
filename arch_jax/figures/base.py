"""The contract of a figure: something for a person to look at, drawn at every evaluation."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax

from arch_jax.errors import UsageError
from arch_jax.protocols import require, require_arrays


@dataclasses.dataclass(frozen=True)
class Figure:
    """Base of all figures; a new one overrides `__call__`, and `check` where a setting can be refused early."""

    #: Attributes that it uses, which not every objective, model or corpus has, and arrays of a batch.
    of_objective: ClassVar[tuple[str, ...]] = ()
    of_model: ClassVar[tuple[str, ...]] = ()
    of_data: ClassVar[tuple[str, ...]] = ()
    arrays: ClassVar[tuple[str, ...]] = ()

    def check(self, task: Any, sampler: Any, data: Any) -> None:
        """Refuses what can't be drawn, before the training rather than at its first evaluation.

        Raises:
          UsageError: an objective, a model or data that lacks what the figure shows.
        """
        require(self, "objective", task, self.of_objective)
        require(self, "model", task.model, self.of_model)
        require(self, "data", data, self.of_data)
        require_arrays(self, data, self.arrays)

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        """Draws a model.

        Args:
          task: the objective with its model (`task.model`).
          variables: of the model, those that are evaluated.
          sampler: of the run; draws as `sampler(task, variables, data, key, count)`.
          data: the corpus.
          key: of everything random; another at each evaluation.

        Returns:
          Name -> text or matplotlib figure; nothing where there is nothing to see in such data.
        """
        raise TypeError(f"{type(self).__name__} must say what it draws")


def drawn(
    figures: Iterable[Figure],
    task: Any,
    variables: Any,
    sampler: Any,
    data: Any,
    key: jax.Array,
    failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, Any]:
    """The output of several figures, by name.

    Args:
      figures, task, variables, sampler, data, key: as for `Figure`.
      failed: called with what could not be drawn, such as "the figure Samples", and its exception, instead of raising
        it; the other figures are drawn all the same.

    Raises:
      UsageError: two of them give the same name, or one gives neither text nor a figure.
    """
    shown: dict[str, Any] = {}
    for figure in figures:
        kind = type(figure).__name__
        try:
            new = figure(task, variables, sampler, data, key)
            for name, thing in new.items():
                if name in shown:
                    raise UsageError(f"two figures give {name!r}; expected names of their own")
                if not isinstance(thing, str) and not is_figure(thing):
                    raise UsageError(
                        f"{kind} gives {name!r} as {type(thing).__name__}; expected text or a matplotlib figure"
                    )
            shown |= new
        except Exception as problem:
            if failed is None:
                raise
            failed(f"the figure {kind}", problem)
    return shown


def is_figure(thing: Any) -> bool:
    """True for a matplotlib figure; matplotlib is not imported."""
    return callable(getattr(thing, "savefig", None))
