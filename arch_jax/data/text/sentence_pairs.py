"""Pairs of text passages, half of them consecutive: BERT's pre-training data.

Source: J. Devlin, M.-W. Chang, K. Lee, K. Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for
Language Understanding", 2018, arXiv 1810.04805, section 3.1 and appendix A.2.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from arch_jax.data.base import Corpus, ValidationBatches, check_whole, stream
from arch_jax.data.text.corpus import Text, TextCorpus
from arch_jax.data.text.tokenizer import Tokenizer
from arch_jax.data.text.windows import Stream
from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.ranges import Count

if TYPE_CHECKING:
    import grain

#: Tokens after the tokenizer's own.
SPECIAL = ("[CLS]", "[SEP]", "[MASK]")


@component("sentence_pairs", kind="data")
@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """[CLS] A [SEP] B [SEP]: A is a passage; B continues it or, half of the time, comes from another document.

    Passages are spans of tokens, of a length drawn uniformly, that together fill a row; where the corpus is a single
    document, the other passage comes from another place. After the tokenizer's tokens come [CLS], [SEP] and [MASK].

    Attributes:
      source: a name from `arch_jax.data.SOURCES`, or "text:PATH".
      tokenizer: "bytes", "characters" or "bpe:SIZE".
      length: tokens of a row, special ones included.
      batch: rows in a training batch, each batch drawn afresh.
      validation: the fraction of the bytes held out; see `splits.split`.
      split_seed: seed of the split into training and validation documents.

    Raises:
      UsageError: if a field is invalid.
    """

    source: str = "pydocs"
    tokenizer: str = "bpe:2000"
    length: int = 64
    batch: int = 32
    validation: float = 0.1
    split_seed: Count = 0

    def __post_init__(self):
        check_whole("length", self.length, 5)
        self._text  # noqa: B018 -- checks the other fields

    @property
    def _text(self) -> Text:
        length = max(1, self.length - 3)
        return Text(self.source, self.tokenizer, length, self.batch, self.validation, split_seed=self.split_seed)

    def load(self) -> "SentenceCorpus":
        """Reads, splits and tokenizes the text.

        Raises:
          As `load_with`.
        """
        return self.load_with(None)

    def load_with(self, tokenizer: Tokenizer | None) -> "SentenceCorpus":
        """The same under the tokenizer that a model was trained with; None builds one from the text.

        Raises:
          UsageError: the source cannot be read, or is too small for one batch or a validation row.
          RunError: a download failed.
        """
        corpus = self._text.load_with(tokenizer)
        for side, name in ((corpus.train_stream, "training"), (corpus.validation_stream, "validation")):
            if not len(_starts(side, self.length - 3)):
                raise UsageError(
                    f"no {name} document of source {self.source!r} has {self.length - 3} tokens; expected a "
                    "smaller length"
                )
        return SentenceCorpus(self, corpus)


class SentenceCorpus(Corpus):
    """Pairs of passages. `SentencePairs.load` makes it.

    Attributes:
      pairs: the `SentencePairs` it came from.
      text: the corpus of text that it draws from.
      vocabulary: the tokenizer's tokens and the special ones.
      cls, sep, mask_token: the special tokens.
      facts: those of the text, with that vocabulary.
      notes: those of the text.
    """

    #: Unit in which batches are counted.
    unit = "tokens"

    def __init__(self, pairs: SentencePairs, text: TextCorpus):
        self.pairs, self.text, self.notes = pairs, text, text.notes
        self.cls, self.sep, self.mask_token = (text.tokenizer.vocabulary + i for i in range(3))
        self.vocabulary = self.mask_token + 1
        self.facts: dict[str, Any] = text.facts | {"vocabulary": self.vocabulary}
        self._starts = {name: _starts(self._stream(name), pairs.length - 3) for name in ("train", "validation")}

    def _stream(self, part: str) -> Stream:
        return self.text.train_stream if part == "train" else self.text.validation_stream

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.pairs.length

    @property
    def units_per_batch(self) -> int:
        """Tokens in a training batch."""
        return self.pairs.batch * self.pairs.length

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of a training batch."""
        shape = (self.pairs.batch, self.pairs.length)
        rows = {"tokens": (shape, "int32"), "types": (shape, "int32"), "mask": (shape, "bool")}
        return rows | {"next": (shape[:1], "int32"), "weights": (shape[:1], "float32")}

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> "grain.DatasetIterator":
        """Endless training batches: batch i is drawn from (seed, i).

        Args:
          seed: determines the passages; 0 <= seed < 2**32.
          shard: (index, count): gives rows index * batch / count up to (index + 1) * batch / count of each batch.

        Returns:
          A Grain iterator, with `get_state` and `set_state`. A batch is a dict of int32 `tokens`, `types` (0 up to the
          first [SEP], then 1) and bool `mask` (all True) "batch length"; int32 `next` (0: B follows A, 1: it does not)
          and float32 `weights` "batch".

        Raises:
          UsageError: a seed out of range; a shard that does not exist; a batch that count does not divide.
        """
        starts = self._starts["train"]

        def rows(number: int, first: int, last: int) -> dict[str, np.ndarray]:
            generator = np.random.default_rng([int(seed), number])
            chosen = starts[generator.integers(len(starts), size=self.pairs.batch)]
            batch = self._rows("train", generator, chosen)
            return {name: array[first:last] for name, array in batch.items()}

        return stream(rows, self.pairs.batch, seed, shard)

    def validation(self) -> ValidationBatches:
        """The validation text in consecutive rows, always the same; in half of them B is from another document."""
        starts = self._starts["validation"][:: max(1, self.pairs.length - 3)]

        def rows(indices: np.ndarray) -> dict[str, np.ndarray]:
            # Each row from a generator of its own: what it holds does not depend on the batch.
            sequences = [np.random.SeedSequence(0, spawn_key=(1, int(i))) for i in indices]
            made = [self._rows("validation", np.random.default_rng(s), starts[[i]]) for s, i in zip(sequences, indices)]
            return {name: np.concatenate([row[name] for row in made]) for name in made[0]}

        return ValidationBatches(rows, len(starts), self.pairs.batch)

    def decode(self, tokens: Any) -> str:
        """The text of token ids, special tokens by name."""
        parts, run = [], []
        for token in [*np.ravel(tokens).tolist(), self.cls]:
            if token < self.cls:
                run.append(token)
                continue
            parts += [self.text.tokenizer.decode(run), SPECIAL[token - self.cls]]
            run = []
        return "".join(parts[:-1])

    def _rows(self, part: str, generator: np.random.Generator, starts: np.ndarray) -> dict[str, np.ndarray]:
        side, room, count = self._stream(part), self.pairs.length - 3, len(starts)
        cuts = generator.integers(1, room, size=count)
        other = generator.integers(2, size=count).astype(np.int32)
        tokens = np.empty((count, self.pairs.length), np.int32)
        for i, (start, cut) in enumerate(zip(starts, cuts)):
            place = self._elsewhere(part, generator, int(start)) if other[i] else start
            a, b = side.tokens[start : start + cut], side.tokens[place + cut : place + room]
            tokens[i] = [self.cls, *a, self.sep, *b, self.sep]
        return {
            "tokens": tokens,
            "types": (np.arange(self.pairs.length) > cuts[:, None] + 1).astype(np.int32),
            "mask": np.ones(tokens.shape, bool),
            "next": other,
            "weights": np.ones(count, np.float32),
        }

    def _elsewhere(self, part: str, generator: np.random.Generator, start: int) -> int:
        """Another place whose document differs too, if a few tries find one."""
        starts, document = self._starts[part], self._stream(part).document
        for _ in range(20):
            place = starts[generator.integers(len(starts))]
            if place != start and (document is None or document[place] != document[start]):
                break
        return int(place)


def _starts(side: Stream, room: int) -> np.ndarray:
    """Start positions of passages of `room` tokens that lie within one document."""
    places = np.arange(max(0, len(side) - room + 1))
    if side.document is None or not len(places):
        return places
    return places[side.document[places] == side.document[places + room - 1]]
