"""Tasks that probe a sequence model's memory: copying, recall by content, and parity.

The target of every position of weight 1 is determined by the tokens up to it. A model reads `tokens` and predicts
`targets` in place.
"""

import dataclasses
from typing import Literal

import numpy as np

from arch_jax.data.base import check_whole
from arch_jax.data.sequences.synthetic import DrawnCorpus
from arch_jax.errors import UsageError, unknown
from arch_jax.fields import component


def _rows(count: int, length: int, fill: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, all `fill`; targets, all 0; weights, all 0), each "count length"."""
    tokens = np.full((count, length), fill, np.int32)
    return tokens, np.zeros_like(tokens), np.zeros((count, length), np.float32)


def _places(generator: np.random.Generator, count: int, among: int, chosen: int, most: object = None) -> np.ndarray:
    """`chosen` different places of 0 ... among - 1 in each row, ascending; below `most`, "count 1", where given."""
    lots = generator.random((count, among))
    lots = lots if most is None else np.where(np.arange(among) < most, lots, 1)
    return np.sort(np.argsort(lots, axis=1)[:, :chosen], axis=1)


def _common(rule: object) -> None:
    for name in ("batch", "validation"):
        check_whole(name, getattr(rule, name), 1)


@component("copy_memory", kind="data")
@dataclasses.dataclass(frozen=True)
class CopyMemory:
    """Symbols, a long delay, a cue, and the symbols again (Arjovsky et al. 2016, 1511.06464, section 5.1).

    `copied` random symbols, `delay` - 1 blanks, the cue, and `copied` places where the symbols are asked in order. As
    in the paper every place has a target, so that a model without memory pays copied ln(symbols) / (delay + 2 copied).

    Attributes:
      delay: the paper's T.
      copied: symbols to remember.
      symbols: kinds of symbol, beside the blank and the cue.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.

    Raises:
      UsageError: if a field is invalid.
    """

    delay: int = 100
    copied: int = 10
    symbols: int = 8
    batch: int = 64
    validation: int = 512

    def __post_init__(self):
        check_whole("delay", self.delay, 1)
        check_whole("copied", self.copied, 1)
        check_whole("symbols", self.symbols, 2)
        _common(self)

    def load(self) -> DrawnCorpus:
        """The sequences, ready to be sampled."""
        return DrawnCorpus(self, "copy_memory", self.symbols + 2, self._draw)

    def _draw(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        blank, sign = self.symbols, self.symbols + 1
        tokens, targets, weights = _rows(count, self.delay + 2 * self.copied, blank)
        drawn = generator.integers(self.symbols, size=(count, self.copied))
        tokens[:, : self.copied] = drawn
        tokens[:, self.copied + self.delay - 1] = sign
        targets[:] = blank
        targets[:, -self.copied :] = drawn
        weights[:] = 1
        return {"tokens": tokens, "targets": targets, "weights": weights}


@component("selective_copying", kind="data")
@dataclasses.dataclass(frozen=True)
class SelectiveCopying:
    """Symbols at random places among noise, to be repeated in order at the end (Mamba, 2312.00752, section 4.1.1).

    Their places differ from row to row, so no fixed convolution can bring them to the end.

    Attributes:
      length: tokens before the answer.
      copied: symbols to remember.
      symbols: kinds of symbol, beside noise and the cue.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.
      shortest: if given, the answer begins after so many tokens or up to `length`, log-uniformly, and more
        noise follows it: the short ones are learned first. A finished model is also tested at `length` alone.

    Raises:
      UsageError: if a field is invalid.
    """

    length: int = 256
    copied: int = 16
    symbols: int = 14
    batch: int = 64
    validation: int = 512
    shortest: int | None = None

    def __post_init__(self):
        check_whole("copied", self.copied, 1)
        check_whole("symbols", self.symbols, 2)
        check_whole("length", self.length, self.copied)
        if self.shortest is not None:
            check_whole("shortest", self.shortest, self.copied, self.length + 1)
        _common(self)

    def load(self) -> DrawnCorpus:
        """The sequences, ready to be sampled."""
        others = {}
        if self.shortest is not None:
            others = {f"at_{self.length}": dataclasses.replace(self, shortest=None).load()}
        return DrawnCorpus(self, "selective_copying", self.symbols + 2, self._draw, others)

    def _draw(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        noise, sign = self.symbols, self.symbols + 1
        tokens, targets, weights = _rows(count, self.length + self.copied, noise)
        drawn = generator.integers(self.symbols, size=(count, self.copied))
        least = self.length if self.shortest is None else self.shortest
        ratio = (self.length + 0.5) / (least - 0.5)
        begin = np.rint((least - 0.5) * ratio ** generator.random((count, 1))).astype(int).clip(least, self.length)
        np.put_along_axis(tokens, _places(generator, count, self.length, self.copied, begin), drawn, axis=1)
        asked = begin + np.arange(self.copied)
        np.put_along_axis(tokens, asked, sign, axis=1)
        np.put_along_axis(targets, asked, drawn, axis=1)
        np.put_along_axis(weights, asked, np.float32(1), axis=1)
        return {"tokens": tokens, "targets": targets, "weights": weights}


@component("induction_heads", kind="data")
@dataclasses.dataclass(frozen=True)
class InductionHeads:
    """Induction heads: recall the symbol that followed a special one (Mamba, 2312.00752, section 4.1.2).

    Random symbols; the special one stands once among them and once at the end, where the symbol after the first is
    asked. (`Repeats` asks it of every symbol.) With `asked` above 1 it also recurs in between, followed by the
    same symbol, which is asked there too: each sequence then gives far more signal.

    Attributes:
      length: tokens of a sequence.
      symbols: kinds of symbol, the special one among them.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.
      asked: the number of queries in a sequence of training and validation; 1 in the paper.
      tested: lengths at which a finished model is also tested, on `tested_sequences` of each, with one query at the
        end.
      tested_sequences: the number of those sequences.

    Raises:
      UsageError: if a field is invalid.
    """

    length: int = 256
    symbols: int = 16
    batch: int = 64
    validation: int = 512
    asked: int = 1
    tested: tuple[int, ...] = ()
    tested_sequences: int = 64

    def __post_init__(self):
        check_whole("length", self.length, 3)
        check_whole("symbols", self.symbols, 3)
        check_whole("asked", self.asked, 1)
        if self.asked > (room := max(1, (self.length - 2) // 2)):
            raise UsageError(f"asked is {self.asked}; expected at most {room} times in {self.length} tokens")
        check_whole("tested_sequences", self.tested_sequences, 1)
        for length in self.tested:
            check_whole("a length of tested", length, 3)
        _common(self)

    def load(self) -> DrawnCorpus:
        """The sequences, ready to be sampled."""
        others = {f"at_{n}": self._tested_at(n).load() for n in self.tested}
        return DrawnCorpus(self, "induction_heads", self.symbols, self._draw, others)

    def _tested_at(self, length: int) -> "InductionHeads":
        # About as many tokens in a batch as in training.
        batch = min(self.tested_sequences, max(1, self.batch * self.length // length))
        return dataclasses.replace(
            self, length=length, batch=batch, validation=self.tested_sequences, tested=(), asked=1
        )

    def _draw(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        special = self.symbols - 1
        tokens, targets, weights = _rows(count, self.length, special)
        tokens[:, :-1] = generator.integers(special, size=(count, self.length - 1))
        # Places for the special symbol and what follows it: every other one, from the first or from the second on.
        pairs = max(1, (self.length - 2) // 2)
        shift = generator.integers(min(2, self.length - 2), size=(count, 1))
        places = 2 * _places(generator, count, pairs, self.asked) + shift
        row = np.arange(count)[:, None]
        tokens[row, places] = special
        answer = tokens[row, places[:, :1] + 1]
        tokens[row, places + 1] = answer
        asked = np.concatenate([places[:, 1:], np.full((count, 1), self.length - 1)], axis=1)
        targets[row, asked] = answer
        weights[row, asked] = 1
        return {"tokens": tokens, "targets": targets, "weights": weights}


@component("multi_query_recall", kind="data")
@dataclasses.dataclass(frozen=True)
class MultiQueryRecall:
    """Key-value pairs, and later each key again as a query for its value: MQAR (Arora et al. 2023, 2312.04927).

    `pairs` keys and values alternate at the start; then each key comes once more, at even places whose distance from
    the start follows the power law of the paper's code, among random tokens. Keys are the first half of the vocabulary
    (but for token 0), values the second.

    Attributes:
      length: tokens of a sequence, even.
      pairs: keys with a value; at most a quarter of the length.
      vocabulary: kinds of token, even.
      power: the exponent a of the density a x^(a-1) of places: small puts most queries near the keys.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.

    Raises:
      UsageError: if a field is invalid.

    Source: arXiv 2312.04927, section 3 and appendix E; HazyResearch/zoology.
    """

    length: int = 64
    pairs: int = 4
    vocabulary: int = 256
    power: float = 0.01
    batch: int = 64
    validation: int = 512

    def __post_init__(self):
        check_whole("length", self.length, 4)
        check_whole("pairs", self.pairs, 1)
        check_whole("vocabulary", self.vocabulary, 4)
        _common(self)
        for name in ("length", "vocabulary"):
            if getattr(self, name) % 2:
                raise UsageError(f"{name} is {getattr(self, name)}; expected an even number")
        if 4 * self.pairs > self.length:
            raise UsageError(f"pairs is {self.pairs}; expected at most {self.length // 4}, a quarter of the length")
        if self.pairs > self.vocabulary // 2 - 1:
            raise UsageError(f"pairs is {self.pairs}, and there are {self.vocabulary // 2 - 1} keys; expected fewer")
        if not self.power > 0:
            raise UsageError(f"power is {self.power}; expected a number above 0, such as 0.01")

    def load(self) -> DrawnCorpus:
        """The sequences, ready to be sampled."""
        return DrawnCorpus(self, "multi_query_recall", self.vocabulary, self._draw)

    def _draw(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        half, pairs = self.vocabulary // 2, self.pairs
        room = (self.length - 2 * pairs) // 2
        tokens, targets, weights = _rows(count, self.length, 0)
        tokens[:] = generator.integers(self.vocabulary, size=tokens.shape)
        keys = 1 + np.argsort(generator.random((count, half - 1)), axis=1)[:, :pairs]
        values = generator.integers(half, self.vocabulary, size=(count, pairs))
        tokens[:, : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
        # Without replacement by weights: the largest of log(weight) + Gumbel noise.
        log_weights = (self.power - 1) * np.log(np.arange(1, room + 1))
        noisy = log_weights + generator.gumbel(size=(count, room))
        places = 2 * pairs + 2 * np.argsort(-noisy, axis=1)[:, :pairs]
        # Fillers must not query: no key stands anywhere else.
        later = tokens[:, 2 * pairs :]
        known = (later[:, :, None] == keys[:, None]).any(axis=2)
        later[known] = 0
        np.put_along_axis(tokens, places, keys, axis=1)
        np.put_along_axis(targets, places, values, axis=1)
        np.put_along_axis(weights, places, np.float32(1), axis=1)
        return {"tokens": tokens, "targets": targets, "weights": weights}


@component("parity", kind="data")
@dataclasses.dataclass(frozen=True)
class Parity:
    """Bits and the parity of their sum (Deletang et al. 2022, 2207.02098; xLSTM, 2405.04517, section 4.1).

    A state has to change sign at every 1, which a recurrence whose factors lie in [0, 1] cannot do (2411.12537). Rows
    are filled up with padding (segment id 0) to the longest length.

    Attributes:
      shortest, longest: bits of a sequence, uniformly distributed.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.
      tested: a greater length: a finished model is also tested on sequences of `longest` to `tested` bits, at their
        ends; None disables it.
      asked: where the parity is asked: at the "last" bit, as in the papers, or after "every" bit, which gives far more
        signal a sequence.

    Raises:
      UsageError: if a field is invalid.
    """

    shortest: int = 3
    longest: int = 40
    batch: int = 256
    validation: int = 512
    tested: int | None = None
    asked: Literal["last", "every"] = "last"

    def __post_init__(self):
        if self.asked not in ("last", "every"):
            raise unknown("place where parity is asked", str(self.asked), ("last", "every"))
        check_whole("shortest", self.shortest, 1)
        check_whole("longest", self.longest, self.shortest)
        if self.tested is not None:
            check_whole("tested", self.tested, self.longest)
        _common(self)

    def load(self) -> DrawnCorpus:
        """The sequences, ready to be sampled."""
        others = {}
        if self.tested is not None:
            longer = dataclasses.replace(self, shortest=self.longest, longest=self.tested, tested=None, asked="last")
            others = {f"to_{self.tested}": longer.load()}
        return DrawnCorpus(self, "parity", 2, self._draw, others)

    def _draw(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        tokens, targets, weights = _rows(count, self.longest, 0)
        lengths = generator.integers(self.shortest, self.longest + 1, size=count)
        real = np.arange(self.longest) < lengths[:, None]
        tokens[:] = generator.integers(2, size=tokens.shape) * real
        targets[:] = np.cumsum(tokens, axis=1) % 2 * real
        weights[:] = real if self.asked == "every" else np.arange(self.longest) == lengths[:, None] - 1
        return {"tokens": tokens, "targets": targets, "weights": weights, "segment_ids": real.astype(np.int32)}
