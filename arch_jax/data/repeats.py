"""Stretches said twice: what a model that looks back for the same token, and copies what followed it, can predict.

The task that tells induction heads: C. Olsson et al., "In-context Learning and Induction Heads", 2022, 2209.11895.
"""

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from arch_jax.data.batches import ValidationBatches, check_whole, stream
from arch_jax.data.tokenizers import CharacterTokenizer
from arch_jax.errors import UsageError
from arch_jax.fields import component

if TYPE_CHECKING:
    import grain

_CHARACTERS = "".join(map(chr, range(33, 127)))


@component("repeats", kind="data")
@dataclasses.dataclass(frozen=True)
class Repeats:
    """Each sequence is a stretch of different random symbols, and then the same stretch again, begun at any place.

    The second time goes on from its end to its beginning, so that the distance to the first time is another in each
    sequence: no look at a fixed distance will do. What counts is each symbol of the second time that follows, for
    certain, from what stood after its predecessor the first time: all but where it begins, and where it turns round.

    Attributes:
      symbols: kinds of symbol, at most 94, each a character.
      stretch: symbols of a stretch, all different.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.

    Raises:
      UsageError: a field is not valid.
    """

    symbols: int = 32
    stretch: int = 16
    batch: int = 64
    validation: int = 512

    def __post_init__(self):
        check_whole("symbols", self.symbols, 2, len(_CHARACTERS) + 1)
        check_whole("stretch", self.stretch, 2)
        for name in ("batch", "validation"):
            check_whole(name, getattr(self, name), 1)
        if self.stretch > self.symbols:
            raise UsageError(
                f"stretch is {self.stretch}, and there are {self.symbols} symbols; expected at most as many, since all "
                "of a stretch are different"
            )

    def load(self) -> "RepeatsCorpus":
        """The sequences, ready to be drawn."""
        return RepeatsCorpus(self)


class RepeatsCorpus:
    """Stretches said twice. `Repeats.load` makes it.

    Attributes:
      repeats: the `Repeats` it came from.
      tokenizer: a character for each symbol.
      facts: what a run should record, as JSON values: source, sha256 (of the validation sequences), vocabulary,
        validation_sequences.
    """

    #: What a batch is counted in.
    unit = "tokens"

    def __init__(self, repeats: Repeats):
        self.repeats = repeats
        self.tokenizer = CharacterTokenizer(_CHARACTERS[: repeats.symbols])
        # A spawned sequence: no training batch, whatever its seed and number, is drawn from it.
        generator = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(1,)))
        self._held_out = self._draw(generator, repeats.validation)
        self.facts: dict[str, Any] = {
            "source": "repeats",
            "sha256": hashlib.sha256(self._held_out.tobytes()).hexdigest(),
            "vocabulary": repeats.symbols,
            "validation_sequences": repeats.validation,
        }

    @property
    def length(self) -> int:
        """Tokens that a model reads: both times but for the last symbol, which is only predicted."""
        return 2 * self.repeats.stretch - 1

    @property
    def units_per_batch(self) -> int:
        """Tokens in a training batch."""
        return self.repeats.batch * self.length

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of a training batch."""
        shape = (self.repeats.batch, self.length)
        return {"tokens": (shape, "int32"), "targets": (shape, "int32"), "weights": (shape, "float32")}

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> "grain.DatasetIterator":
        """Endless training batches: batch i is drawn from (seed, i), so that no two are the same.

        Args:
          seed: determines the sequences; 0 <= seed < 2**32.
          shard: (index, count): gives rows index * batch / count up to (index + 1) * batch / count of each batch.

        Returns:
          A Grain iterator, with `get_state` and `set_state`. A batch is a dict of int32 `tokens` and `targets` (the
          next tokens) and float32 `weights` (1 where the target follows from what was read), "batch length".

        Raises:
          UsageError: a seed out of range; a shard that does not exist; a batch that count does not divide.
        """

        def rows(number: int, first: int, last: int) -> dict[str, np.ndarray]:
            drawn = self._draw(np.random.default_rng([int(seed), number]), self.repeats.batch)
            return self._batch(drawn[first:last])

        return stream(rows, self.repeats.batch, seed, shard)

    def validation(self) -> ValidationBatches:
        """The validation sequences in order, in batches of the training batch's size."""
        return ValidationBatches(lambda i: self._batch(self._held_out[i]), len(self._held_out), self.repeats.batch)

    def _draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """First stretches, and behind each the place where it begins the second time: int32 "count stretch+1"."""
        size = self.repeats.stretch
        order = np.argsort(generator.random((count, self.repeats.symbols)), axis=1)[:, :size]
        return np.concatenate([order, generator.integers(size, size=(count, 1))], axis=1).astype(np.int32)

    def _batch(self, drawn: np.ndarray) -> dict[str, np.ndarray]:
        first, begin = drawn[:, :-1], drawn[:, -1:]
        size = self.repeats.stretch
        place = (begin + np.arange(size)) % size  # in the first stretch, of each symbol of the second time
        twice = np.concatenate([first, np.take_along_axis(first, place, axis=1)], axis=1)
        follows = (np.arange(size) > 0) & (place > 0)
        # Target t is token t + 1.
        weights = np.concatenate([np.zeros((len(first), size - 1)), follows], axis=1).astype(np.float32)
        return {"tokens": twice[:, :-1], "targets": twice[:, 1:], "weights": weights}
