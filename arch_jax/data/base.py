"""Numbered batches: an endless Grain stream, a validation set in batches of one size, and argument checks."""

import dataclasses
import numbers
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from arch_jax.errors import UsageError

if TYPE_CHECKING:
    import grain

# Batches until an iterator ends. Grain's own endless repeat overflows in batches of one.
ENDLESS = 2**53


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
