"""Random sequences and their copies: the smallest tasks that need an encoder, a decoder and cross-attention."""

import dataclasses
from typing import Literal

import numpy as np

from arch_jax.data.base import check_whole
from arch_jax.data.sequences.pairs import PairCorpus, Pairs
from arch_jax.errors import UsageError, unknown
from arch_jax.fields import component

TASKS = {"copy": slice(None), "reverse": slice(None, None, -1)}


@component("random_pairs", kind="data")
@dataclasses.dataclass(frozen=True)
class RandomPairs:
    """Uniformly random symbols as source, and the same ones as target, forwards or backwards.

    Symbols are the tokens 0 to symbols - 1; then come the start and the stop token.

    Attributes:
      task: "copy" or "reverse".
      symbols: number of different ones.
      shortest: symbols of the shortest sequence; lengths from there to `length` are equally likely.
      length: symbols of the longest sequence.
      batch: pairs in a training batch, each batch drawn afresh.
      validation: pairs of the validation set.

    Raises:
      UsageError: if a field is invalid.
    """

    task: Literal["copy", "reverse"] = "copy"
    symbols: int = 16
    shortest: int = 4
    length: int = 12
    batch: int = 64
    validation: int = 512

    def __post_init__(self):
        if self.task not in TASKS:
            raise unknown("task", str(self.task), TASKS)
        check_whole("symbols", self.symbols, 2)
        for name in ("shortest", "length", "batch", "validation"):
            check_whole(name, getattr(self, name), 1)
        if self.shortest > self.length:
            raise UsageError(f"shortest is {self.shortest}; expected at most length, which is {self.length}")

    def load(self) -> PairCorpus:
        """The task, ready to be sampled from."""
        # A spawned sequence: no training batch, whatever its seed and number, is drawn from it.
        held_out = self._draw(np.random.default_rng(np.random.SeedSequence(0, spawn_key=(1,))), self.validation)

        def draw(seed: int, number: int) -> dict[str, np.ndarray]:
            return self._draw(np.random.default_rng([seed, number]), self.batch).rows(np.arange(self.batch))

        return PairCorpus(
            data=self,
            batch=self.batch,
            lengths=(self.length + 1, self.length + 1),
            draw=draw,
            held_out=held_out,
            start=self.symbols,
            stop=self.symbols + 1,
            vocabulary=self.symbols + 2,
            facts={
                "source": f"random_pairs:{self.task}",
                "sha256": held_out.sha256,
                "vocabulary": self.symbols + 2,
                "validation_pairs": self.validation,
            },
            decode=lambda tokens: " ".join(str(token) for token in np.asarray(tokens).tolist()),
            encode=self._encode,
        )

    def _encode(self, text: str) -> list[int]:
        tokens = text.split()
        for token in tokens:
            if not (token.isdecimal() and int(token) < self.symbols):
                raise UsageError(
                    f"the prompt holds {token!r}; expected numbers from 0 to {self.symbols - 1}, such as '0 1 0'"
                )
        return list(map(int, tokens))

    def _draw(self, generator: np.random.Generator, count: int) -> Pairs:
        lengths = generator.integers(self.shortest, self.length + 1, size=count)
        sources = [generator.integers(self.symbols, size=n, dtype=np.int32) for n in lengths]
        targets = [row[TASKS[self.task]] for row in sources]
        return Pairs.of(sources, targets, (self.length + 1,) * 2, self.symbols, self.symbols + 1)
