"""Repeated random sequences (induction task): a model has to find the previous occurrence and copy what followed it.

The task that reveals induction heads: C. Olsson et al., "In-context Learning and Induction Heads", 2022, 2209.11895.
"""

import dataclasses

import numpy as np

from arch_jax.data.base import check_whole
from arch_jax.data.sequences.synthetic import DrawnCorpus
from arch_jax.errors import UsageError
from arch_jax.fields import component


@component("repeats", kind="data")
@dataclasses.dataclass(frozen=True)
class Repeats:
    """Each sequence is a run of different random symbols, then the same run again, starting anywhere in it.

    The repetition wraps around, so that its distance to the first occurrence differs from sequence to sequence: looking
    back by a fixed distance does not help. Weighted are the symbols of the repetition that are determined by what
    followed their predecessor the first time: all but the first one and the one where it wraps around.

    Attributes:
      symbols: kinds of symbol, at most 94, each a character.
      stretch: symbols in a run, all different.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.

    Raises:
      UsageError: if a field is invalid.
    """

    symbols: int = 32
    stretch: int = 16
    batch: int = 64
    validation: int = 512

    def __post_init__(self):
        check_whole("symbols", self.symbols, 2, 95)
        check_whole("stretch", self.stretch, 2)
        for name in ("batch", "validation"):
            check_whole(name, getattr(self, name), 1)
        if self.stretch > self.symbols:
            raise UsageError(
                f"stretch is {self.stretch}, and there are {self.symbols} symbols; expected at most as many, since all "
                "of a run are different"
            )

    def load(self) -> DrawnCorpus:
        """The sequences, ready to be sampled; a model reads all symbols but the last, which is only predicted."""
        return DrawnCorpus(self, "repeats", self.symbols, self._draw)

    def _draw(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        size = self.stretch
        first = np.argsort(generator.random((count, self.symbols)), axis=1)[:, :size]
        begin = generator.integers(size, size=(count, 1))
        place = (begin + np.arange(size)) % size  # in the first run, of each symbol of the repetition
        twice = np.concatenate([first, np.take_along_axis(first, place, axis=1)], axis=1).astype(np.int32)
        follows = (np.arange(size) > 0) & (place > 0)
        # Target t is token t + 1.
        weights = np.concatenate([np.zeros((count, size - 1)), follows], axis=1).astype(np.float32)
        return {"tokens": twice[:, :-1], "targets": twice[:, 1:], "weights": weights}
