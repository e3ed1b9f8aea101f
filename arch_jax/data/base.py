"""Numbered batches: an endless Grain stream, a validation set in batches of one size, and argument checks."""

import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from arch_jax.errors import UsageError

if TYPE_CHECKING:
    import grain

# Batches until an iterator ends. Grain's own endless repeat overflows in batches of one.
ENDLESS = 2**53


class Corpus:
    """Base of what `load()` of a data component gives: data that is ready to be drawn from.

    A corpus of one's own has `shapes`, `facts`, `train` and `validation`, and sets what else it has in place of the
    defaults below. What objectives, samplers and figures ask for has a name here, so that none of them probes for it.

    Attributes:
      shapes: name -> (shape, dtype name) of each array of a training batch, known before there is one.
      facts: what a run records of it, as JSON values; "source" and "sha256" among them.
      notes: sentences on what was left out of the source, for whoever loads it to be told; not a part of `facts`.
      unit: what a batch is counted in: "examples", "tokens", "images" ...
      full_batch: whether every batch is the same one, of all the data.
      tokenizer: of text, with `encode`, `decode`, `vocabulary`, `name`; None where there is no text.
      decode: token ids -> text, for people, where tokens mean more than the tokenizer knows, or there is none.
      encode: text -> token ids of a source sequence, where a source can be given as text.
      mask_token: id of [MASK], where the data has one.
      classes: how many labels there are; None where there are none.
      class_names: their names; None where the source does not say.
      low, high: values of the darkest and the brightest pixel.
      elsewhere: name -> a further corpus that the finished model is measured on, such as longer sequences.
      references: the test targets as text, where translations are scored as text.
      lowercase: whether that text is compared without regard to case.
      training_sample: (count) -> batches of at most so many training examples without augmentation; None where there
        is no such sample.
      ideal: (tokens, share, masked, random) -> log-probabilities "batch time symbols" of the best predictor of masked
        tokens, where the source is known.
    """

    shapes: dict[str, tuple[tuple[int, ...], str]]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()
    unit = "examples"
    full_batch = False
    tokenizer: Any = None
    decode: Any = None
    encode: Any = None
    mask_token: int | None = None
    classes: int | None = None
    class_names: Any = None
    low = 0.0
    high = 1.0
    elsewhere: Mapping[str, Any] = MappingProxyType({})
    references: tuple[str, ...] | None = None
    lowercase = False
    training_sample: Any = None
    ideal: Any = None

    @property
    def units_per_batch(self) -> int:
        """Units in a training batch; by default its rows."""
        return next(iter(self.shapes.values()))[0][0]

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> Any:
        """Endless training batches, determined by `seed` alone, as a Grain iterator (see `stream`)."""
        raise TypeError(f"{type(self).__name__} must say how training batches are drawn")

    def validation(self) -> Any:
        """The validation batches, iterable any number of times; rows that fill up the last have weight 0."""
        raise TypeError(f"{type(self).__name__} must say what its validation batches are")

    def unit_range(self, pixels: Any) -> np.ndarray:
        """Pixels scaled so that the darkest is 0 and the brightest 1, as figures take them."""
        return (np.asarray(pixels) - self.low) / (self.high - self.low)


def load_corpus(data: Any, tell: Callable[[str], None] | None = None, tokenizer: Any = None) -> Any:
    """The corpus of a data component, with the defaults of `Corpus` where its own class does not inherit them.

    Args:
      data: the component.
      tell: given each sentence on what was left out.
      tokenizer: that of a trained model, where the data is text to be read under it.

    Raises:
      UsageError: there is no data.
    """
    if data is None:
        raise UsageError("data is None; expected where batches come from, such as data=text")
    own = tokenizer is None or not isinstance(data, Tokenized)
    corpus = with_defaults(data.load() if own else data.load_with(tokenizer))
    for note in corpus.notes if tell else ():
        tell(note)
    return corpus


def with_defaults(corpus: Any) -> Any:
    """A corpus with the defaults of `Corpus` where its class does not inherit them."""
    return corpus if isinstance(corpus, Corpus) else _Adopted(corpus)


class _Adopted(Corpus):
    """A corpus of a class that does not inherit the defaults: its own attributes first, the defaults for the others."""

    def __init__(self, corpus: Any) -> None:
        self._corpus = corpus

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__").get("_corpus")
        return getattr(own, name) if not name.startswith("_") and hasattr(own, name) else super().__getattribute__(name)


@runtime_checkable
class Tokenized(Protocol):
    """Data that can be read under the tokenizer a model was trained with, for evaluation."""

    def load_with(self, tokenizer: Any) -> Any:
        """As `load`, but with the given tokenizer."""
        ...


def stream(
    rows: Callable[[int, int, int], dict[str, np.ndarray]], batch: int, seed: int, shard: tuple[int, int]
) -> "grain.DatasetIterator":
    """Endless batches through Grain, each a function of its number.

    Args:
      rows: (number, first, last) -> rows first up to last of the batch of that number.
      batch: rows in a whole batch.
      seed: source of randomness of `rows`; only checked here: 0 <= seed < 2**32.
      shard: (index, count): which share of each batch's rows is given.

    Raises:
      UsageError: a seed out of range; a shard that does not exist; a batch that count does not divide.
    """
    import grain

    index, count = check_shard(shard)
    check_divides(batch, count)
    check_whole("seed", seed, 0, 2**32)
    share = batch // count
    batches = grain.MapDataset.range(ENDLESS).map(lambda i: rows(int(i), index * share, (index + 1) * share))
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


@dataclasses.dataclass(frozen=True, eq=False)
class ValidationBatches:
    """All examples in order, in batches of one size: iterable any number of times, with a length.

    Attributes:
      rows: (indices) -> the batch of these examples, with `weights`.
      count: number of examples.
      batch: examples in a batch; the last one is padded with zeros, of weight 0.
    """

    rows: Callable[[np.ndarray], dict[str, np.ndarray]]
    count: int
    batch: int

    def __len__(self) -> int:
        return -(-self.count // self.batch)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, self.count, self.batch):
            found = self.rows(np.arange(start, min(start + self.batch, self.count)))
            if "weights" not in found:
                raise UsageError(f"validation rows have {', '.join(found)}; expected 'weights' among them")
            missing = self.batch - len(found["weights"])
            yield {name: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) for name, a in found.items()}


def check_whole(name: str, value: Any, least: int, below: int | None = None) -> int:
    """`value` as an int, if it is a whole number, least <= value < below.

    Raises:
      UsageError: it is not; the sentence begins with `name`.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least or (below is not None and value >= below):
        limits = f"of at least {least}" if below is None else f"from {least} to {below - 1}"
        raise UsageError(f"{name} is {value!r}; expected a whole number {limits}")
    return int(value)


def check_shard(shard: Any) -> tuple[int, int]:
    """`shard` as (index, count), if there is such a shard.

    Raises:
      UsageError: it is not a pair of whole numbers, 0 <= index < count.
    """
    try:
        index, count = shard
    except (TypeError, ValueError):
        raise UsageError(f"shard is {shard!r}; expected (index, count), such as (0, 2)") from None
    check_whole("shard's count", count, 1)
    check_whole("shard's index", index, 0, count)
    return int(index), int(count)


def check_divides(batch: int, count: int) -> None:
    """Checks that `count` shards can share a batch.

    Raises:
      UsageError: they can't; with the nearest number that can.
    """
    if batch % count:
        near = min((n for n in range(1, batch + 1) if batch % n == 0), key=lambda n: abs(n - count))
        raise UsageError(f"batch {batch} cannot be divided among {count} shards; the nearest number that can is {near}")
