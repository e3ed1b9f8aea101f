"""Windows into a stream of tokens: what a language model sees, what it should predict, and where that counts."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """The tokens of one side of a split, document after document.

    Attributes:
      tokens: int32 "size".
      document: int32 "size", the number of each token's document, which rises by one from document to document; None
        where the corpus is a single document.
    """

    tokens: np.ndarray
    document: np.ndarray | None

    @classmethod
    def of(cls, encoded: Sequence[np.ndarray], single: bool) -> "Stream":
        """The stream of these documents' tokens; `single` says that the corpus has one document only."""
        encoded = [tokens for tokens in encoded if len(tokens)]
        tokens = np.concatenate(encoded) if encoded else np.zeros(0, np.int32)
        numbers = np.arange(len(encoded), dtype=np.int32)
        return cls(tokens, None if single else np.repeat(numbers, [len(tokens) for tokens in encoded]))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def predictions(self) -> int:
        """The number of predictable tokens: all but the first of each document."""
        if not len(self):
            return 0
        return len(self) - 1 - (int(self.document[-1]) if self.document is not None else 0)

    def window(self, start: int, length: int) -> dict[str, np.ndarray]:
        """The window of `length` tokens from `start`, which leaves room for one more token: its last target.

        Returns:
          `tokens` and `targets` (the next tokens), int32 "length"; `weights`, float32 "length", 0 where the target
          belongs to the next document; and where the corpus has several documents, `segment_ids`, int32 "length", which
          number the window's documents from 1.
        """
        stop = start + length
        window = {"tokens": self.tokens[start:stop], "targets": self.tokens[start + 1 : stop + 1]}
        if self.document is None:
            return {**window, "weights": np.ones(length, np.float32)}
        document = self.document[start : stop + 1]
        window["weights"] = (document[1:] == document[:-1]).astype(np.float32)
        window["segment_ids"] = document[:-1] - document[0] + np.int32(1)
        return window


@dataclasses.dataclass(frozen=True, eq=False)
class ValidationWindows:
    """The whole stream in order, in batches of non-overlapping windows: iterable any number of times, with a length.

    Each token that can be predicted (all but the first of each document) is a target of weight 1 once. All batches have
    the shape "batch length": what is left over at the end is padding, with tokens, targets, weights, bytes and segment
    ids 0.
    """

    stream: Stream
    length: int
    batch: int
    byte_lengths: np.ndarray

    @property
    def _windows(self) -> int:
        return -(-(len(self.stream) - 1) // self.length)

    def __len__(self) -> int:
        return -(-self._windows // self.batch)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        size = self.batch * self.length
        for i in range(len(self)):
            yield self._batch(i * size, min((i + 1) * size, len(self.stream) - 1), size)

    def _batch(self, start: int, stop: int, size: int) -> dict[str, np.ndarray]:
        rows = lambda values: np.pad(values, (0, size - len(values))).reshape(self.batch, self.length)
        flat = self.stream.window(start, stop - start)
        batch = {name: rows(values) for name, values in flat.items()}
        batch["bytes"] = rows(np.where(flat["weights"] > 0, self.byte_lengths[flat["targets"]], 0).astype(np.int32))
        if "segment_ids" in batch:
            # Numbered along the whole batch so far; each window counts from 1. Padding, 0, stays below and is clipped.
            ids = batch["segment_ids"]
            batch["segment_ids"] = np.maximum(ids - ids[:, :1] + 1, 0) * (ids > 0).astype(np.int32)
        return batch
