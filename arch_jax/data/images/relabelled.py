"""Labelled images under the class numbers of other data, by name: a model knows the numbers of its training."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from arch_jax.errors import UsageError, nearest


class Relabelled:
    """The validation images of a corpus, under the numbers that their classes' names have elsewhere.

    Args:
      corpus: with `class_names`.
      names: of all classes, in the order of the numbers that labels are to have.

    Raises:
      UsageError: a class that is not among the names.
    """

    def __init__(self, corpus: Any, names: Sequence[str]) -> None:
        for name in corpus.class_names:
            if name not in names:
                raise UsageError(f"the class {name!r} is none of those that were trained on{nearest(name, names)}")
        self._corpus = corpus
        self._numbers = np.array([list(names).index(name) for name in corpus.class_names], np.int32)
        self.class_names, self.classes = tuple(names), len(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._corpus, name)

    def validation(self) -> Iterator[Any]:
        """The corpus's validation batches, with the other numbers as labels."""
        for batch in self._corpus.validation():
            yield {**batch, "labels": self._numbers[np.asarray(batch["labels"])]}
