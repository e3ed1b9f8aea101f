"""Tasks that ask what a sequence model can hold: copying, recall by content, and counting modulo 2.

Each has one answer for each token that counts, and gives nothing of it away. Positions that are asked are those with
weight 1; a model reads `tokens` and predicts `targets` in place.
"""

import dataclasses

import numpy as np

from arch_jax.data.batches import check_whole
from arch_jax.data.drawn import DrawnCorpus
from arch_jax.errors import UsageError
from arch_jax.fields import component


def _rows(count: int, length: int, fill: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, all `fill`; targets, all 0; weights, all 0), each "count length"."""
    tokens = np.full((count, length), fill, np.int32)
    return tokens, np.zeros_like(tokens), np.zeros((count, length), np.float32)


def _places(generator: np.random.Generator, count: int, among: int, chosen: int) -> np.ndarray:
    """`chosen` different places of 0 ... among - 1 for each row, in ascending order."""
    return np.sort(np.argsort(generator.random((count, among)), axis=1)[:, :chosen], axis=1)


def _common(rule: object) -> None:
    for name in ("batch", "validation"):
        check_whole(name, getattr(rule, name), 1)


@component("copy_memory", kind="data")
@dataclasses.dataclass(frozen=True)
class CopyMemory:
    """Symbols, a long delay, a sign, and the symbols again (Arjovsky et al. 2016, 1511.06464, section 5.1).

    `copied` random symbols, `delay` - 1 blanks, the sign, and `copied` places where the symbols are asked in order. As
    in the paper every place is asked, so that a model without memory pays copied ln(symbols) / (delay + 2 copied).

    Attributes:
      delay: the paper's T.
      copied: symbols to remember.
      symbols: kinds of symbol, beside the blank and the sign.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.

    Raises:
      UsageError: a field is not valid.
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
        """The sequences, ready to be drawn."""
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
    """Symbols at random places among noise, to be said in order at the end (Mamba, 2312.00752, section 4.1.1).

    Where they stand differs from row to row, so no fixed convolution can bring them to the end.

    Attributes:
      length: tokens before the answer.
      copied: symbols to remember.
      symbols: kinds of symbol, beside noise and the sign that asks.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.

    Raises:
      UsageError: a field is not valid.
    """

    length: int = 256
    copied: int = 16
    symbols: int = 14
    batch: int = 64
    validation: int = 512

    def __post_init__(self):
        check_whole("copied", self.copied, 1)
        check_whole("symbols", self.symbols, 2)
        check_whole("length", self.length, self.copied)
        _common(self)

    def load(self) -> DrawnCorpus:
        """The sequences, ready to be drawn."""
        return DrawnCorpus(self, "selective_copying", self.symbols + 2, self._draw)

    def _draw(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        noise, sign = self.symbols, self.symbols + 1
        tokens, targets, weights = _rows(count, self.length + self.copied, noise)
        drawn = generator.integers(self.symbols, size=(count, self.copied))
        np.put_along_axis(tokens, _places(generator, count, self.length, self.copied), drawn, axis=1)
        tokens[:, self.length :] = sign
        targets[:, self.length :] = drawn
        weights[:, self.length :] = 1
        return {"tokens": tokens, "targets": targets, "weights": weights}


@component("induction_heads", kind="data")
@dataclasses.dataclass(frozen=True)
class InductionHeads:
    """What followed the special symbol, asked when it comes again (Mamba, 2312.00752, section 4.1.2).

    Random symbols; the special one stands once among them and once at the end, where the symbol behind the first is
    asked. (`Repeats` asks it of every symbol.)

    Attributes:
      length: tokens of a sequence.
      symbols: kinds of symbol, the special one among them.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.

    Raises:
      UsageError: a field is not valid.
    """

    length: int = 256
    symbols: int = 16
    batch: int = 64
    validation: int = 512

    def __post_init__(self):
        check_whole("length", self.length, 3)
        check_whole("symbols", self.symbols, 3)
        _common(self)

    def load(self) -> DrawnCorpus:
        """The sequences, ready to be drawn."""
        return DrawnCorpus(self, "induction_heads", self.symbols, self._draw)

    def _draw(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        special = self.symbols - 1
        tokens, targets, weights = _rows(count, self.length, special)
        tokens[:, :-1] = generator.integers(special, size=(count, self.length - 1))
        row, place = np.arange(count), generator.integers(self.length - 2, size=count)
        tokens[row, place] = special
        targets[:, -1] = tokens[row, place + 1]
        weights[:, -1] = 1
        return {"tokens": tokens, "targets": targets, "weights": weights}


@component("multi_query_recall", kind="data")
@dataclasses.dataclass(frozen=True)
class MultiQueryRecall:
    """Keys with values, and later each key again, where its value is asked: MQAR (Arora et al. 2023, 2312.04927).

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
      UsageError: a field is not valid.

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
        """The sequences, ready to be drawn."""
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
        # Other tokens must not ask: no key stands anywhere else.
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
    """Bits, and at the end whether their sum is odd (Deletang et al. 2022, 2207.02098; xLSTM, 2405.04517, section 4.1).

    A state has to change sign at every 1, which a recurrence whose factors lie in [0, 1] cannot do (2411.12537). Rows
    are filled up with padding (segment id 0) to the longest length.

    Attributes:
      shortest, longest: bits of a sequence, drawn evenly.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.

    Raises:
      UsageError: a field is not valid.
    """

    shortest: int = 3
    longest: int = 40
    batch: int = 256
    validation: int = 512

    def __post_init__(self):
        check_whole("shortest", self.shortest, 1)
        check_whole("longest", self.longest, self.shortest)
        _common(self)

    def load(self) -> DrawnCorpus:
        """The sequences, ready to be drawn."""
        return DrawnCorpus(self, "parity", 2, self._draw)

    def _draw(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        tokens, targets, weights = _rows(count, self.longest, 0)
        lengths = generator.integers(self.shortest, self.longest + 1, size=count)
        real = np.arange(self.longest) < lengths[:, None]
        tokens[:] = generator.integers(2, size=tokens.shape) * real
        last = (np.arange(count), lengths - 1)
        targets[last] = tokens.sum(axis=1) % 2
        weights[last] = 1
        return {"tokens": tokens, "targets": targets, "weights": weights, "segment_ids": real.astype(np.int32)}
