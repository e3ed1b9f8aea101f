"""The contract of a sampler; its settings are its fields."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.protocols import require
from arch_jax.scalars import whole


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Base of all samplers; a new one overrides `__call__`, and `check` where a setting can be refused early.

    The fields are the settings, so that `arch-jax sample RUN --set sampler.temperature=0.5` reaches each of them.
    `Experiment.sampler` names one; without it a run has that of its objective.
    """

    #: Whether it reads the data, beyond the tokenizer that a run carries with it.
    uses_data: ClassVar[bool] = True
    #: Attributes that it uses, which not every objective, model or corpus has.
    of_objective: ClassVar[tuple[str, ...]] = ()
    of_model: ClassVar[tuple[str, ...]] = ()
    of_data: ClassVar[tuple[str, ...]] = ()

    def check(self, task: Any, data: Any) -> None:
        """Refuses what can't be sampled, before the training rather than after it.

        Raises:
          UsageError: a setting that the model or the data does not allow, or an attribute that they lack.
        """
        require(self, "objective", task, self.of_objective)
        require(self, "model", task.model, self.of_model)
        require(self, "data", data, self.of_data)

    def __call__(self, task: Any, variables: Any, data: Any, key: jax.Array, count: int = 1) -> dict[str, Any]:
        """Draws samples.

        Args:
          task: the objective with its model (`task.model`).
          variables: of the model, those that are evaluated.
          data: the corpus, or where `uses_data` is false at least what a run carries of it.
          key: of everything random; equal keys give equal samples.
          count: how many.

        Returns:
          Name -> text, array with a leading axis of `count`, or matplotlib figure.

        Raises:
          UsageError: a setting out of range.
        """
        raise TypeError(f"{type(self).__name__} must say what it draws")


def check_count(count: Any) -> int:
    """A number of samples.

    Raises:
      UsageError: no integer, or one below 1.
    """
    count = whole("count", count, "an integer of at least 1")
    if count < 1:
        raise UsageError(f"count is {count}; expected at least 1")
    return count


def numbered(name: str, texts: list[str]) -> dict[str, str]:
    """Texts under names of their own: {name: ...} for one, {"sample_1": ..., "sample_2": ...} for several."""
    if len(texts) == 1:
        return {name: texts[0]}
    return {f"sample_{i + 1}": text for i, text in enumerate(texts)}


def keys_by_row(key: jax.Array, count: int) -> jax.Array:
    """A key for each row: row i draws the same, however many rows there are."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
