"""Sequences drawn by a rule: tasks whose answers are known, so that what a model can do shows without a corpus."""

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from arch_jax.data.base import Corpus, ValidationBatches, stream
from arch_jax.data.text.tokenizer import CharacterTokenizer
from arch_jax.errors import UsageError

if TYPE_CHECKING:
    import grain

#: (generator, how many) -> "tokens", "targets" (int32) and "weights" (float32), each "count length".
Draw = Callable[[np.random.Generator, int], dict[str, np.ndarray]]
#: How often a batch is drawn anew for the rows of it that the validation set holds.
_ATTEMPTS = 100


def symbols(count: int) -> str:
    """`count` different characters that can be printed, in the order of their code points."""
    return "".join(map(chr, [*range(33, 127), *range(0x100, 0x100 + max(0, count - 94))]))[:count]


class DrawnCorpus(Corpus):
    """Sequences for a model of the next token: training batches drawn afresh, and validation sequences held out.

    No training sequence is one of the validation sequences: such rows are drawn again.

    Attributes:
      rule: the settings that it came from, with `batch` and `validation`.
      tokenizer: a character for each token.
      facts: what a run should record, as JSON values: source, sha256 (of the validation sequences), vocabulary,
        validation_sequences.
      elsewhere: name -> validation sequences of other settings, such as greater lengths, that a finished model is
        tested on; each a `DrawnCorpus`.
    """

    #: What a batch is counted in.
    unit = "tokens"

    def __init__(
        self,
        rule: Any,
        source: str,
        vocabulary: int,
        draw: Draw,
        elsewhere: "Mapping[str, DrawnCorpus] | None" = None,
    ) -> None:
        self.rule, self._draw, self.elsewhere = rule, draw, dict(elsewhere or {})
        self.tokenizer = CharacterTokenizer(symbols(vocabulary))
        # A spawned sequence: no training batch, whatever its seed and number, is drawn from it.
        generator = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(1,)))
        self._held_out = draw(generator, rule.validation)
        self._keys = {row.tobytes() for row in self._held_out["tokens"]}
        digest = hashlib.sha256(b"".join(self._held_out[name].tobytes() for name in sorted(self._held_out)))
        self.facts: dict[str, Any] = {
            "source": source,
            "sha256": digest.hexdigest(),
            "vocabulary": vocabulary,
            "validation_sequences": rule.validation,
        }

    @property
    def length(self) -> int:
        """Tokens that a model reads."""
        return self._held_out["tokens"].shape[1]

    @property
    def units_per_batch(self) -> int:
        """Tokens in a training batch."""
        return self.rule.batch * self.length

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of a training batch."""
        return {name: ((self.rule.batch, *rows.shape[1:]), str(rows.dtype)) for name, rows in self._held_out.items()}

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> "grain.DatasetIterator":
        """Endless training batches: batch i is drawn from (seed, i), so that no two are the same.

        Args:
          seed: determines the sequences; 0 <= seed < 2**32.
          shard: (index, count): gives rows index * batch / count up to (index + 1) * batch / count of each batch.

        Returns:
          A Grain iterator, with `get_state` and `set_state`. A batch is a dict of int32 `tokens` and `targets` and
          float32 `weights` (0 where nothing is asked), "batch length".

        Raises:
          UsageError: a seed out of range; a shard that does not exist; a batch that count does not divide; a rule that
            gives hardly anything but validation sequences.
        """

        def rows(number: int, first: int, last: int) -> dict[str, np.ndarray]:
            drawn = self._new(np.random.default_rng([int(seed), number]))
            return {name: array[first:last] for name, array in drawn.items()}

        return stream(rows, self.rule.batch, seed, shard)

    def _new(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """A batch without validation sequences."""
        found = self._draw(generator, self.rule.batch)
        for _ in range(_ATTEMPTS):
            known = [i for i, row in enumerate(found["tokens"]) if row.tobytes() in self._keys]
            if not known:
                return found
            again = self._draw(generator, len(known))
            for name, array in found.items():
                array[known] = again[name]
        raise UsageError(
            f"{self.facts['source']} has hardly any sequence that is not among the {self.rule.validation} for "
            "validation; expected longer sequences, or fewer for validation"
        )

    def validation(self) -> ValidationBatches:
        """The validation sequences in order, in batches of the training batch's size."""
        rows = lambda i: {name: array[i] for name, array in self._held_out.items()}
        return ValidationBatches(rows, self.rule.validation, self.rule.batch)
