"""Pairs of token sequences for an encoder-decoder: their layout as arrays, and the stream of training batches."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from arch_jax.data.base import Corpus, ValidationBatches, stream
from arch_jax.errors import UsageError

if TYPE_CHECKING:
    import grain

#: Names and dtypes of the arrays in a batch of pairs.
DTYPES = {"source": "int32", "source_mask": "bool", "target": "int32", "labels": "int32", "weights": "float32"}


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs as padded arrays; padding is token 0, marked by the lengths.

    Attributes:
      source: int32 "pairs source".
      source_lengths: int32 "pairs"; real tokens of each source.
      target: int32 "pairs target"; the decoder's input, which begins with the start token.
      labels: int32 "pairs target"; the decoder's targets, which end with the stop token.
      target_lengths: int32 "pairs"; real tokens of each of both.
    """

    source: np.ndarray
    source_lengths: np.ndarray
    target: np.ndarray
    labels: np.ndarray
    target_lengths: np.ndarray

    @classmethod
    def of(
        cls,
        sources: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        lengths: tuple[int, int] | None,
        start: int,
        stop: int,
    ) -> "Pairs":
        """Lays out pairs: `stop` is appended to both sides, and the decoder's input shifted right behind `start`.

        Args:
          sources: token ids of each source.
          targets: token ids of each target.
          lengths: of the source and the target arrays, stop token included; None takes the longest pair's.
          start: the token that the decoder begins with.
          stop: the token that ends a sequence.

        Raises:
          UsageError: a sequence that does not fit.
        """
        if lengths is None:
            lengths = tuple(max(len(row) for row in side) + 1 for side in (sources, targets))
        source, source_lengths = _padded(sources, lengths[0], stop)
        labels, target_lengths = _padded(targets, lengths[1], stop)
        shifted = np.concatenate([np.full((len(labels), 1), start, np.int32), labels[:, :-1]], axis=1)
        real = np.arange(lengths[1]) < target_lengths[:, None]
        return cls(source, source_lengths, np.where(real, shifted, 0).astype(np.int32), labels, target_lengths)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def sha256(self) -> str:
        """Of both sides with their shapes."""
        digest = hashlib.sha256()
        for array in (self.source, self.labels):
            digest.update(f"{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of these pairs: `source`, `source_mask`, `target`, `labels`, and `weights`, 0 at padding."""
        place = lambda array, lengths: np.arange(array.shape[1]) < lengths[indices, None]
        return {
            "source": self.source[indices],
            "source_mask": place(self.source, self.source_lengths),
            "target": self.target[indices],
            "labels": self.labels[indices],
            "weights": place(self.labels, self.target_lengths).astype(np.float32),
        }

    def batches(self, batch: int) -> ValidationBatches:
        """All pairs in order, in batches of one size; rows that fill the last one have weight 0."""
        return ValidationBatches(self.rows, len(self), batch)


def _padded(rows: Sequence[np.ndarray], length: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(row) + 1 for row in rows], np.int32)
    if len(rows) and lengths.max() > length:
        raise UsageError(
            f"a sequence has {lengths.max()} tokens with its stop token, and the array has {length} places; expected a "
            f"length of at least {lengths.max()}"
        )
    padded = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    padded[np.arange(len(rows)), lengths - 1] = stop
    return padded, lengths


def before_stop(tokens: np.ndarray, stop: int) -> np.ndarray:
    """The tokens before the first `stop`; all of them where there is none."""
    tokens = np.asarray(tokens)
    ends = np.flatnonzero(tokens == stop)
    return tokens[: ends[0]] if len(ends) else tokens


@dataclasses.dataclass(frozen=True, eq=False)
class PairCorpus(Corpus):
    """Pairs ready to be sampled from: the data of the encoder-decoder objective.

    Attributes:
      data: the component it came from.
      batch: pairs in a training batch.
      lengths: of the source and the target arrays of a training batch.
      draw: (seed, number) -> the whole training batch of that number.
      held_out: the validation pairs.
      start: the token that the decoder begins with.
      stop: the token that ends a sequence.
      vocabulary: number of token ids, `start` and `stop` among them.
      facts: recorded by a run, as JSON values.
      decode: token ids -> text.
      encode: text -> token ids, where a source can be given as text.
      tests: the pairs that a finished model is scored on; None takes the validation pairs.
      references: the test targets as text, in order, where translations are scored as text.
      lowercase: whether that text is compared without regard to case.
      notes: sentences on what was left out of the source.
    """

    data: Any
    batch: int
    lengths: tuple[int, int]
    draw: Callable[[int, int], dict[str, np.ndarray]] = dataclasses.field(repr=False)
    held_out: Pairs = dataclasses.field(repr=False)
    start: int
    stop: int
    vocabulary: int
    facts: dict[str, Any]
    decode: Callable[[Any], str] = dataclasses.field(repr=False)
    tests: Pairs | None = dataclasses.field(default=None, repr=False)
    references: tuple[str, ...] | None = dataclasses.field(default=None, repr=False)
    lowercase: bool = False
    encode: Callable[[str], Any] | None = dataclasses.field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    #: Unit in which batches are counted.
    unit = "pairs"

    @property
    def units_per_batch(self) -> int:
        """Pairs in a training batch."""
        return self.batch

    @property
    def length(self) -> int:
        """Tokens of the longer side of a training batch."""
        return max(self.lengths)

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, int], str]]:
        """Shape and dtype of each array of a training batch."""
        side = {"source": 0, "source_mask": 0}
        return {name: ((self.batch, self.lengths[side.get(name, 1)]), dtype) for name, dtype in DTYPES.items()}

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> "grain.DatasetIterator":
        """Endless training batches, each a function of the seed and its number.

        Args:
          seed: determines the pairs or their order; 0 <= seed < 2**32.
          shard: (index, count): gives rows index * batch / count up to (index + 1) * batch / count of each batch.

        Returns:
          A Grain iterator, with `get_state` and `set_state`. A batch is a dict of int32 `source`, bool `source_mask`
          (True at real tokens) "batch source"; int32 `target` and `labels`, float32 `weights` "batch target".

        Raises:
          UsageError: a seed out of range; a shard that does not exist; a batch that count does not divide.
        """

        def rows(number: int, first: int, last: int) -> dict[str, np.ndarray]:
            return {name: array[first:last] for name, array in self.draw(int(seed), number).items()}

        return stream(rows, self.batch, seed, shard)

    def validation(self) -> ValidationBatches:
        """The validation pairs in order, in batches of the training batch's size."""
        return self.held_out.batches(self.batch)

    def test(self) -> ValidationBatches:
        """The pairs that a finished model is scored on, in order; the validation pairs if there are no others."""
        return (self.held_out if self.tests is None else self.tests).batches(self.batch)


def shuffled(pairs: Pairs, batch: int) -> Callable[[int, int], dict[str, np.ndarray]]:
    """(seed, number) -> a batch of an endless stream in which each pair comes once an epoch, reshuffled every epoch.

    Where `batch` does not divide the number of pairs, the batch across the border takes from both epochs.
    """

    @functools.lru_cache(maxsize=2)
    def order(seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(len(pairs))

    def draw(seed: int, number: int) -> dict[str, np.ndarray]:
        epochs, places = np.divmod(number * batch + np.arange(batch), len(pairs))
        return pairs.rows(np.array([order(seed, int(e))[p] for e, p in zip(epochs, places)]))

    return draw
