"""Span corruption (T5): each corrupted span is replaced by one sentinel, and the target restores the spans.

Source: C. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2019,
arXiv 1910.10683, sections 3.1.4 and 3.3.4; lengths and spans are counted as in the paper's code.
"""

import dataclasses
import numbers

import numpy as np

from arch_jax.data.base import check_whole
from arch_jax.data.sequences.pairs import PairCorpus, Pairs
from arch_jax.data.text.corpus import Text
from arch_jax.data.text.tokenizer import Tokenizer
from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.ranges import Count

#: Tokens of a text to each place of its corrupted form, at most; and places.
_MOST, _LONGEST = 16, 2**20


def noise_counts(length: int, density: float | int, mean_span: float | int) -> tuple[int, int]:
    """(number of corrupted tokens, number of spans) in a text of `length` tokens; both at least 1."""
    noise = min(max(round(length * density), 1), length - 1)
    # Each span has a token at least, and another kept in front of it.
    return noise, max(1, min(round(noise / mean_span), noise, length - noise))


def span_lengths(source: int, density: float | int, mean_span: float | int) -> tuple[int, int]:
    """Lengths of a text whose corrupted form fills `source` places, and of its target.

    The source holds the kept tokens, a sentinel a span and the stop token; the target the corrupted tokens, a sentinel
    a span and the stop token.

    Returns:
      (tokens of the text, places of the target): (568, 114) for T5's 512 places, 15 % and spans of 3.
    """

    def lengths(tokens: int) -> tuple[int, int]:
        noise, spans = noise_counts(tokens, density, mean_span)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = max(2, source - 1)  # so many always find room
    while lengths(tokens + 1)[0] <= source:
        tokens += 1
        if tokens > _MOST * source:
            raise UsageError(
                f"density is {density}, so that {source} places would stand for more than {_MOST * source} tokens; "
                "expected less, such as 0.15"
            )
    return tokens, lengths(tokens)[1]


def noise_mask(generator: np.random.Generator, length: int, density: float | int, mean_span: float | int) -> np.ndarray:
    """Mask of corrupted tokens: bool "length", beginning with kept ones and ending with corrupted ones.

    The numbers of tokens and spans are fixed; all ways to divide them into spans are equally likely.
    """
    noise, spans = noise_counts(length, density, mean_span)
    runs = np.stack([_parts(generator, total, spans) for total in (length - noise, noise)], axis=1).ravel()
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def _parts(generator: np.random.Generator, total: int, count: int) -> np.ndarray:
    """Sizes of `count` parts of at least 1 that make `total`, all ways equally likely."""
    borders = np.sort(generator.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], borders, [total]]))


def corrupt_spans(tokens: np.ndarray, mask: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(source, target) without stop tokens: each span of `mask` becomes one sentinel, expanded in the target.

    Args:
      tokens: int32 "length".
      mask: bool "length", True where corrupted.
      top: the first span's sentinel; the next ones have the ids below.
    """
    first = mask & ~np.concatenate([[False], mask[:-1]])
    sentinel = top + 1 - np.cumsum(first)
    source = np.where(first, sentinel, tokens)[first | ~mask]
    # In the target each span's sentinel stands before the span's tokens.
    target = np.insert(tokens[mask], np.flatnonzero(first[mask]), sentinel[first])
    return source.astype(np.int32), target.astype(np.int32)


def restore(source: np.ndarray, target: np.ndarray, top: int, spans: int) -> np.ndarray:
    """Inverse of `corrupt_spans`: each sentinel of the source replaced by what follows it in the target.

    Args:
      source: corrupted text, without stop token.
      target: the expanded sentinels, without stop token.
      top: the first span's sentinel.
      spans: the number of tokens from `top` downwards are sentinels.
    """
    is_sentinel = lambda row: (row <= top) & (row > top - spans)
    places = np.flatnonzero(is_sentinel(target))
    held = {int(target[p]): target[p + 1 : q] for p, q in zip(places, [*places[1:], len(target)])}
    parts = [held.get(int(token), token[None][:0]) if is_sentinel(token) else token[None] for token in source]
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)


@component("spans", kind="data")
@dataclasses.dataclass(frozen=True)
class Spans:
    """A text corpus under span corruption, with new spans each time a window is read.

    After the tokenizer's tokens come the start and the stop token; the sentinels are the last ids, the first span's the
    very last. A validation window has the same spans at each call.

    Attributes:
      source: a name from `arch_jax.data.SOURCES`, or "text:PATH".
      tokenizer: "bytes", "characters" or "bpe:SIZE".
      length: places of the source; those of the target and of the text follow from it, see `span_lengths`.
      density: fraction of the tokens that are corrupted, between 0 and 1.
      mean_span: mean number of tokens in a span, at least 1.
      batch: windows in a batch.
      validation: the fraction of the bytes held out; see `splits.split`.
      split_seed: seed of the split into training and validation documents.

    Raises:
      UsageError: if a field is invalid.
    """

    source: str = "pydocs"
    tokenizer: str = "bytes"
    length: int = 128
    density: float = 0.15
    mean_span: float = 3.0
    batch: int = 16
    validation: float = 0.1
    split_seed: Count = 0

    def __post_init__(self):
        check_whole("length", self.length, 4, _LONGEST + 1)
        if not isinstance(self.density, numbers.Real) or not 0 < self.density < 1:
            raise UsageError(f"density is {self.density!r}; expected a fraction between 0 and 1, such as 0.15")
        if not isinstance(self.mean_span, numbers.Real) or not self.mean_span >= 1:
            raise UsageError(f"mean_span is {self.mean_span!r}; expected at least 1 token, such as 3.0")
        self._text  # noqa: B018 -- checks the other fields

    @property
    def _text(self) -> Text:
        tokens, _ = span_lengths(self.length, self.density, self.mean_span)
        # One place less: a window of a language model has one more token, its last target.
        return Text(self.source, self.tokenizer, tokens - 1, self.batch, self.validation, split_seed=self.split_seed)

    def load(self) -> PairCorpus:
        """Reads, splits and tokenizes the text.

        Raises:
          As `load_with`.
        """
        return self.load_with(None)

    def load_with(self, tokenizer: Tokenizer | None) -> PairCorpus:
        """The same under the tokenizer that a model was trained with; None builds one from the text.

        Raises:
          UsageError: the source cannot be read, or is too small for one batch or a validation window.
          RunError: a download failed.
        """
        corpus = self._text.load_with(tokenizer)
        tokens, target = span_lengths(self.length, self.density, self.mean_span)
        spans = noise_counts(tokens, self.density, self.mean_span)[1]
        start, stop = corpus.tokenizer.vocabulary, corpus.tokenizer.vocabulary + 1
        vocabulary = stop + 1 + spans
        train, held_out = corpus.train_stream.tokens, corpus.validation_stream.tokens
        if len(held_out) < tokens:
            raise UsageError(
                f"validation={self.validation} of source {self.source!r} holds out {len(held_out)} tokens, and a "
                f"window has {tokens}; expected a larger fraction, or a length of at most {max(4, len(held_out) - 2)}"
            )

        def pairs(generator: np.random.Generator, windows: list[np.ndarray]) -> Pairs:
            made = [
                corrupt_spans(window, noise_mask(generator, tokens, self.density, self.mean_span), vocabulary - 1)
                for window in windows
            ]
            return Pairs.of(*zip(*made), (self.length, target), start, stop)

        def draw(seed: int, number: int) -> dict[str, np.ndarray]:
            generator = np.random.default_rng([seed, number])
            starts = generator.integers(len(train) - tokens + 1, size=self.batch)
            return pairs(generator, [train[s : s + tokens] for s in starts]).rows(np.arange(self.batch))

        whole = [held_out[i * tokens : (i + 1) * tokens] for i in range(len(held_out) // tokens)]

        def decode(ids) -> str:
            parts, ids = [], np.asarray(ids).reshape(-1)
            borders = np.flatnonzero(ids >= start)
            for before, after in zip([-1, *borders], [*borders, len(ids)]):
                sign = "" if before < 0 else f"<{vocabulary - 1 - ids[before]}>" if ids[before] > stop else ""
                parts.append(sign + corpus.tokenizer.decode(ids[before + 1 : after]))
            return "".join(parts)

        facts = corpus.facts | {"vocabulary": vocabulary, "window": tokens, "target": target, "sentinels": spans}
        return PairCorpus(
            data=self,
            batch=self.batch,
            lengths=(self.length, target),
            draw=draw,
            held_out=pairs(np.random.default_rng(np.random.SeedSequence(0, spawn_key=(1,))), whole),
            start=start,
            stop=stop,
            vocabulary=vocabulary,
            facts=facts,
            notes=corpus.notes,
            decode=decode,
        )
