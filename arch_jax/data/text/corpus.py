"""Text as batches for a language model: from a source's name to an endless, resumable stream of training windows."""

import dataclasses
import functools
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from arch_jax.data.base import ENDLESS, Corpus, check_divides, check_shard, check_whole
from arch_jax.data.text import sources, splits, tokenizers
from arch_jax.data.text.tokenizer import Tokenizer
from arch_jax.data.text.windows import Stream, ValidationWindows
from arch_jax.errors import UsageError, unknown
from arch_jax.fields import component
from arch_jax.ranges import Count

if TYPE_CHECKING:
    import grain

SAMPLING: dict[str, str] = {
    "shuffled": "non-overlapping windows, each once an epoch, in a new order and with moved borders each epoch",
    "random": "windows from uniformly random places, with replacement, as in nanoGPT",
}


@component("text", kind="data")
@dataclasses.dataclass(frozen=True)
class Text:
    """A text corpus for language models, and its batching.

    Attributes:
      source: of the text: a name from `arch_jax.data.SOURCES`, or "text:PATH".
      tokenizer: "bytes", "characters" or "bpe:SIZE".
      length: tokens in a window.
      batch: windows in a batch.
      validation: the fraction of the bytes held out, between 0 and 1, exclusive; see `splits.split`.
      sampling: "shuffled" or "random"; see `SAMPLING`.
      split_seed: seed of the split into training and validation documents.

    Raises:
      UsageError: if a field is invalid.
    """

    source: str = "pydocs"
    tokenizer: str = "bytes"
    length: int = 256
    batch: int = 16
    validation: float = 0.1
    sampling: str = "shuffled"
    split_seed: Count = 0

    def __post_init__(self):
        sources.check_text_source(self.source)
        tokenizers.check_tokenizer(self.tokenizer)
        check_whole("length", self.length, 1)
        check_whole("batch", self.batch, 1)
        check_whole("split_seed", self.split_seed, 0)
        if not isinstance(self.validation, numbers.Real) or not 0 < self.validation < 1:
            raise UsageError(
                f"validation is {self.validation!r}; expected a fraction between 0 and 1, exclusive, such as 0.1"
            )
        if not isinstance(self.sampling, str) or self.sampling not in SAMPLING:
            raise unknown("sampling", str(self.sampling), SAMPLING)

    def load(self) -> "TextCorpus":
        """Reads the source, splits it, and tokenizes both sides.

        Raises:
          As `load_with`.
        """
        return self.load_with(None)

    def load_with(self, tokenizer: Tokenizer | None) -> "TextCorpus":
        """The same under the tokenizer that a model was trained with; None builds one from the text.

        Raises:
          UsageError: the source cannot be read, or is too small for one batch or for a validation text.
          RunError: a download failed.
        """
        documents = sources.documents(self.source)
        split = splits.split(documents.texts, float(self.validation), int(self.split_seed))
        if tokenizer is None:
            tokenizer = tokenizers.tokenizer(self.tokenizer, documents.texts, split.train)
        single = len(documents) == 1
        train = Stream.of(tokenizer.encode_all(split.train), single)
        validation = Stream.of(tokenizer.encode_all(split.validation), single)
        self._check_sizes(train, validation)
        facts = {
            "source": self.source,
            "sha256": documents.sha256,
            "documents": len(documents),
            "groups": split.groups,
            "bytes": sum(len(text.encode()) for text in documents),
            "validation_bytes": sum(len(text.encode()) for text in split.validation),
            "train_tokens": len(train),
            "validation_tokens": len(validation),
            "vocabulary": tokenizer.vocabulary,
            "tokenizer": tokenizer.name,
        }
        return TextCorpus(self, tokenizer, facts, train, validation, documents.notes)

    def _check_sizes(self, train: Stream, validation: Stream) -> None:
        there, needed = len(train), self.length * self.batch + 1
        if there < needed:
            fits = [f"length {(there - 1) // self.batch}"] if there > self.batch else []
            fits += [f"batch {(there - 1) // self.length}"] if there > self.length else []
            advice = " or ".join(f"at most {fit}" for fit in fits) or "a larger corpus, or smaller length and batch"
            raise UsageError(
                f"source {self.source!r} has {there:,} training tokens, and one batch of {self.batch} x {self.length} "
                f"needs {needed:,} (one more for the last target); expected {advice}"
            )
        if validation.predictions < 1:
            raise UsageError(
                f"validation={self.validation} of source {self.source!r} holds out {len(validation)} tokens, which "
                f"leaves nothing to predict; expected a larger fraction, or a larger corpus"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class TextCorpus(Corpus):
    """A text that is read, split and tokenized. `Text.load` makes it.

    Attributes:
      text: the `Text` it came from.
      tokenizer: its tokenizer; `tokenizer.to_json()` goes into a run's folder.
      facts: recorded by a run, as JSON values: source, sha256, documents, groups, bytes, validation_bytes,
        train_tokens, validation_tokens, vocabulary, tokenizer.
      train_stream, validation_stream: the tokens of both sides.
      notes: sentences on what was left out of the source.
    """

    text: Text
    tokenizer: Tokenizer = dataclasses.field()  # not the default of `Corpus`
    facts: dict[str, Any]
    train_stream: Stream = dataclasses.field(repr=False)
    validation_stream: Stream = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()

    #: What a batch is counted in, and how many of them it holds.
    unit = "tokens"

    @property
    def units_per_batch(self) -> int:
        """Tokens in a training batch."""
        return self.text.batch * self.text.length

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.text.length

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, int], str]]:
        """Shape and dtype of each array of a training batch: known before there is one."""
        dtypes = {"tokens": "int32", "targets": "int32", "weights": "float32"}
        if self.train_stream.document is not None:
            dtypes["segment_ids"] = "int32"
        return {name: ((self.text.batch, self.text.length), dtype) for name, dtype in dtypes.items()}

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> "grain.DatasetIterator":
        """Endless training batches, determined by `seed` alone.

        The training documents' tokens form one stream, document after document, from which windows are cut as
        `text.sampling` says.

        Args:
          seed: determines the order; 0 <= seed < 2**32.
          shard: (index, count): gives rows index * batch / count up to (index + 1) * batch / count of each batch, for
            hosts that load a part each. The shards, one below the other, are the unsharded batch.

        Returns:
          A Grain iterator, with `get_state` and `set_state`. A batch is a dict of arrays "batch length" (with the
          shard's share of the batch): int32 `tokens` and `targets`; float32 `weights`, 0 where the target belongs to
          the next document; and where the corpus has several documents, int32 `segment_ids`, the documents in each
          window numbered from 1.

        Raises:
          UsageError: a seed out of range; a shard that does not exist; a batch that count does not divide.
        """
        import grain

        index, count = check_shard(shard)
        check_divides(self.text.batch, count)
        check_whole("seed", seed, 0, 2**32)
        stream, length = self.train_stream, self.text.length

        if self.text.sampling == "random":
            starts = len(stream) - length

            def random_window(_, generator: np.random.Generator) -> dict[str, np.ndarray]:
                return stream.window(int(generator.integers(starts)), length)

            windows = grain.MapDataset.range(1).repeat(ENDLESS).random_map(random_window, seed=int(seed))
        else:
            # As many windows as fit wherever the first one starts, so that all epochs have the same number.
            in_epoch = max(1, (len(stream) - length) // length)
            places = min(length, len(stream) - in_epoch * length)

            # Not Grain's shuffle: it takes up to 10 ms a window where windows are few, and shuffles epoch e of seed s
            # like epoch 0 of seed s + e.
            @functools.lru_cache(maxsize=2)
            def epoch(number: int) -> tuple[int, np.ndarray]:
                generator = np.random.default_rng([int(seed), number])
                return int(generator.integers(places)), generator.permutation(in_epoch)

            def window(i: int, k: int) -> dict[str, np.ndarray]:
                phase, order = epoch(i // in_epoch)
                return stream.window(phase + int(order[k]) * length, length)

            windows = grain.MapDataset.range(in_epoch).repeat(ENDLESS // in_epoch).map_with_index(window)

        # Batches of a shard's size; of those, every count-th is this shard's.
        batches = windows.batch(self.text.batch // count)[index::count]
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    def validation(self, batch: int | None = None) -> ValidationWindows:
        """The whole validation text once, in order, in windows of `text.length` that don't overlap.

        Args:
          batch: windows in a batch; the training batch by default.

        Returns:
          An iterable of batches like those of `train`, all of the shape "batch length", with int32 `bytes` beside: how
          many UTF-8 bytes each target stands for, 0 where its weight is 0. Each token but the first of each document is
          predicted once. Padding at the end has weight 0 and segment id 0.

        Raises:
          UsageError: batch is not at least 1.
        """
        batch = self.text.batch if batch is None else check_whole("batch", batch, 1)
        return ValidationWindows(self.validation_stream, self.text.length, batch, self.tokenizer.byte_lengths)
