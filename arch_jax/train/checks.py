"""Shapes and structures where parts of a run meet, checked by chex while a program is traced, at no cost afterwards.

Each failure is a `UsageError` that names the part: an objective, a player, a collection, an array of the data.
"""

import functools
from collections.abc import Mapping
from typing import Any

import chex
import jax
import numpy as np

from arch_jax.errors import UsageError


def check_pairs(pairs: Mapping[str, Any], part: str) -> None:
    """Requires (sum, weight) pairs of scalars.

    Args:
      pairs: name -> pair.
      part: named in the error, such as "the loss of player 'model'".

    Raises:
      UsageError: something else than two scalars.
    """
    for name, pair in pairs.items():
        try:
            chex.assert_equal(len(pair), 2)
            chex.assert_shape(list(map(jax.numpy.asarray, pair)), ())
        except (AssertionError, TypeError) as problem:
            raise UsageError(
                f"{part} gives {name!r} as {_shapes(pair)}; expected a pair of scalars, (sum, weight)"
            ) from problem


def check_collections(before: Mapping[str, Any], after: Mapping[str, Any], part: str) -> None:
    """Requires updated collections of the structure, shapes and dtypes that they had.

    Args:
      before: name -> tree, as the state has them.
      after: name -> tree, as the objective returns them.
      part: named in the error.

    Raises:
      UsageError: a collection that the state does not have, or of another structure, shape or dtype.
    """
    for name, tree in after.items():
        if name in ("params", "frozen"):
            raise UsageError(f"{part} updates {name!r}; expected collections of its own")
        if name not in before:
            known = ", ".join(map(repr, before)) or "none"
            raise UsageError(
                f"{part} updates the collection {name!r}, which `init` did not make; those of the state: {known}"
            )
        try:
            chex.assert_trees_all_equal_shapes_and_dtypes(before[name], tree)
        except (AssertionError, ValueError) as problem:
            raise UsageError(
                f"{part} changes the structure, shape or dtype of the collection {name!r}: {_line(problem)}"
            ) from problem


def check_batch(batch: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Requires a batch to have the arrays that its corpus declares.

    Args:
      batch: name -> array.
      shapes: name -> (shape, dtype).

    Raises:
      UsageError: an array is missing or not declared, or its shape or dtype is another.
    """
    if shapes.keys() == batch.keys() and all(
        np.shape(batch[name]) == tuple(shape) and batch[name].dtype == dtype for name, (shape, dtype) in shapes.items()
    ):
        return  # without chex, which takes as long as a short step
    for name in shapes.keys() ^ batch.keys():
        where = "the batch lacks it" if name in shapes else "the corpus does not declare it in `shapes`"
        raise UsageError(f"the data's array {name!r}: {where}")
    for name, (shape, dtype) in shapes.items():
        array = np.asarray(batch[name])
        try:
            chex.assert_shape(array, tuple(shape))
            chex.assert_type(array, np.dtype(dtype))
        except AssertionError as problem:
            raise UsageError(
                f"the data's array {name!r} is {array.dtype} {array.shape}; its corpus declares {dtype} {tuple(shape)}"
            ) from problem


def _shapes(value: Any) -> str:
    shapes = jax.tree.map(lambda x: str(np.shape(x)), value)
    return str(shapes).replace("'", "")


def _line(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:300]


@functools.lru_cache(maxsize=16)
def evaluation_program(task: Any) -> Any:
    """`checked_evaluation` under jit: one program for all runs of equal tasks, with the weights as arguments."""
    return jax.jit(checked_evaluation(task))


def checked_evaluation(task: Any) -> Any:
    """`task.evaluate`, whose metrics are required to be pairs of scalars with "loss" among them."""
    part = f"the objective {type(task).__name__} in `evaluate`"

    def evaluate(variables: Any, batch: Any) -> dict[str, Any]:
        metrics = task.evaluate(variables, batch)
        check_pairs(metrics, part)
        if "loss" not in metrics:
            raise UsageError(f"{part} gives {', '.join(metrics) or 'nothing'}; expected 'loss' among them")
        return metrics

    return evaluate
