"""Sequences of a random Markov chain: a language whose entropy is known exactly, for masked language models."""

import dataclasses
import hashlib
import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from arch_jax.data.base import Corpus, ValidationBatches, check_whole, stream
from arch_jax.data.sequences.markov_chain import MASKED, Chain, Corruption
from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.ranges import Count

if TYPE_CHECKING:
    import grain


@component("markov", kind="data")
@dataclasses.dataclass(frozen=True)
class Markov:
    """Stationary sequences of one ergodic chain; its states are the tokens, and the one after them is [MASK].

    Attributes:
      states: number of states.
      concentration: of the Dirichlet prior of each row of the transition matrix; the smaller, the more predictable
        is the next state.
      chain_seed: of the transition matrix.
      length: tokens of a sequence.
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.

    Raises:
      UsageError: if a field is invalid.
    """

    states: int = 8
    concentration: float = 0.3
    chain_seed: Count = 0
    length: int = 32
    batch: int = 64
    validation: int = 512

    def __post_init__(self):
        check_whole("states", self.states, 2)
        for name in ("length", "batch", "validation"):
            check_whole(name, getattr(self, name), 1)
        check_whole("chain_seed", self.chain_seed, 0, 2**32)
        value = self.concentration
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not real or not math.isfinite(value) or value <= 0:
            raise UsageError(f"concentration is {value!r}; expected a finite number above 0, such as 0.3")

    def load(self) -> "MarkovCorpus":
        """The chain, ready to be sampled from."""
        return MarkovCorpus(self, Chain.random(self.states, self.concentration, self.chain_seed))


class MarkovCorpus(Corpus):
    """Sequences of a chain. `Markov.load` makes it.

    Attributes:
      markov: the `Markov` it came from.
      chain: the chain itself.
      vocabulary: the states and [MASK].
      facts: recorded by a run, as JSON values: source, sha256 (of the transition matrix and the validation
        sequences), vocabulary, validation_sequences, and in nats a token `entropy_rate`, `two_sided_entropy` (a single
        hidden token between known ones) and `masked_entropy` (the least expected loss under BERT's corruption, each
        token chosen alone with probability 0.15).
    """

    #: Unit in which batches are counted.
    unit = "tokens"

    def __init__(self, markov: Markov, chain: Chain):
        self.markov, self.chain = markov, chain
        self.vocabulary = markov.states + 1
        # A spawned sequence: no training batch, whatever its seed and number, is drawn from it.
        generator = np.random.default_rng(np.random.SeedSequence(markov.chain_seed, spawn_key=(1,)))
        self._held_out = chain.sample(generator, markov.validation, markov.length)
        digest = hashlib.sha256(chain.transition.tobytes() + self._held_out.tobytes())
        self.facts: dict[str, Any] = {
            "source": "markov",
            "sha256": digest.hexdigest(),
            "vocabulary": self.vocabulary,
            "validation_sequences": markov.validation,
            "entropy_rate": chain.entropy_rate,
            "two_sided_entropy": chain.two_sided_entropy,
            "masked_entropy": chain.masked_entropy(markov.length, Corruption()),
        }

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.markov.length

    @property
    def entropy_rate(self) -> float:
        """Of the source, in nats a token: the least expected loss of a token given all tokens before it."""
        return self.chain.entropy_rate

    @property
    def units_per_batch(self) -> int:
        """Tokens in a training batch."""
        return self.markov.batch * self.markov.length

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of a training batch."""
        shape = (self.markov.batch, self.markov.length)
        return {"tokens": (shape, "int32"), "mask": (shape, "bool"), "weights": (shape[:1], "float32")}

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> "grain.DatasetIterator":
        """Endless training batches: batch i is drawn from (seed, i), so that no two are the same.

        Args:
          seed: determines the sequences; 0 <= seed < 2**32.
          shard: (index, count): gives rows index * batch / count up to (index + 1) * batch / count of each batch.

        Returns:
          A Grain iterator, with `get_state` and `set_state`. A batch is a dict of int32 `tokens` and bool `mask` (all
          True) "batch length", and float32 `weights` "batch".

        Raises:
          UsageError: a seed out of range; a shard that does not exist; a batch that count does not divide.
        """

        def rows(number: int, first: int, last: int) -> dict[str, np.ndarray]:
            generator = np.random.default_rng([int(seed), number])
            return _batch(self.chain.sample(generator, self.markov.batch, self.length)[first:last])

        return stream(rows, self.markov.batch, seed, shard)

    def validation(self) -> ValidationBatches:
        """The validation sequences in order, in batches of the training batch's size."""
        return ValidationBatches(lambda i: _batch(self._held_out[i]), len(self._held_out), self.markov.batch)

    def decode(self, tokens: Any) -> str:
        """Token ids as text."""
        return " ".join("[MASK]" if token == self.markov.states else str(token) for token in np.ravel(tokens).tolist())

    def ideal(self, corrupted: np.ndarray, share: float, masked: float, random: float) -> np.ndarray:
        """The optimal prediction of chosen tokens: log P(state | all observations), "batch length states".

        Exact where each token is chosen alone, with probability `share`.

        Args:
          corrupted: tokens, [MASK] being `states`.
          share, masked, random: see `markov_chain.Corruption`.
        """
        observed = np.where(corrupted == self.markov.states, MASKED, corrupted)
        return np.log(np.maximum(self.chain.posterior(observed, Corruption(share, masked, random)), 1e-300))


def _batch(tokens: np.ndarray) -> dict[str, np.ndarray]:
    return {"tokens": tokens, "mask": np.ones(tokens.shape, bool), "weights": np.ones(len(tokens), np.float32)}
