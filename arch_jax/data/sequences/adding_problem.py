"""The adding problem: predict the sum of two marked numbers at the end of a long sequence."""

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from arch_jax.data.base import Corpus, ValidationBatches, check_whole, stream
from arch_jax.errors import unknown
from arch_jax.fields import component

if TYPE_CHECKING:
    import grain

MARKERS = ("halves", "anywhere")


@component("adding_problem", kind="data")
@dataclasses.dataclass(frozen=True)
class AddingProblem:
    """Random numbers of [0, 1), two of them marked; the target is the sum of these two.

    Hochreiter & Schmidhuber (1997, experiment 4) devised it to measure over what distance a network can keep two
    numbers. The constant prediction 1 has the mean squared error 1/6, the variance of a sum of two.

    Attributes:
      length: numbers in a sequence; the papers' T.
      markers: their places: "halves", one anywhere in each half (1511.06464, section 5.2), or "anywhere", two
        different places of the whole (as in the code of 1803.01271).
      batch: sequences in a training batch, each batch drawn afresh.
      validation: sequences of the validation set.

    Raises:
      UsageError: if a field is invalid.
    """

    length: int = 200
    markers: Literal["halves", "anywhere"] = "halves"
    batch: int = 50
    validation: int = 1000

    def __post_init__(self):
        check_whole("length", self.length, 2)
        for name in ("batch", "validation"):
            check_whole(name, getattr(self, name), 1)
        if self.markers not in MARKERS:
            raise unknown("markers", str(self.markers), MARKERS)

    def load(self) -> "AddingCorpus":
        """The task, ready to be sampled from."""
        return AddingCorpus(self)


class AddingCorpus(Corpus):
    """Sequences of the adding problem. `AddingProblem.load` makes it.

    Attributes:
      problem: the `AddingProblem` it came from.
      facts: recorded by a run, as JSON values: source, sha256 (of the validation sequences), length, markers,
        validation_sequences.
    """

    #: Unit in which batches are counted.
    unit = "sequences"

    def __init__(self, problem: AddingProblem):
        self.problem = problem
        # A spawned sequence: no training batch, whatever its seed and number, is drawn from it.
        generator = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(1,)))
        self._held_out = self._draw(generator, problem.validation)
        digest = hashlib.sha256(b"".join(self._held_out[name].tobytes() for name in sorted(self._held_out)))
        self.facts: dict[str, Any] = {
            "source": "adding_problem",
            "sha256": digest.hexdigest(),
            "length": problem.length,
            "markers": problem.markers,
            "validation_sequences": problem.validation,
        }

    @property
    def units_per_batch(self) -> int:
        """Sequences in a training batch."""
        return self.problem.batch

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of a training batch."""
        return {name: ((self.problem.batch, *rows.shape[1:]), str(rows.dtype)) for name, rows in self._held_out.items()}

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> "grain.DatasetIterator":
        """Endless training batches: batch i is drawn from (seed, i), so that no two are the same.

        Args:
          seed: determines the sequences; 0 <= seed < 2**32.
          shard: (index, count): gives rows index * batch / count up to (index + 1) * batch / count of each batch.

        Returns:
          A Grain iterator, with `get_state` and `set_state`. A batch is a dict, all float32, of `x`, "batch length 2",
          the numbers and their marks (1, or 0), `targets`, "batch", in [0, 2), and `weights`, "batch", all 1.

        Raises:
          UsageError: a seed out of range; a shard that does not exist; a batch that count does not divide.
        """

        def rows(number: int, first: int, last: int) -> dict[str, np.ndarray]:
            drawn = self._draw(np.random.default_rng([int(seed), number]), self.problem.batch)
            return {name: array[first:last] for name, array in drawn.items()}

        return stream(rows, self.problem.batch, seed, shard)

    def validation(self) -> ValidationBatches:
        """The validation sequences in order, in batches of the training batch's size."""
        rows = lambda i: {name: array[i] for name, array in self._held_out.items()}
        return ValidationBatches(rows, self.problem.validation, self.problem.batch)

    def _draw(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        length = self.problem.length
        numbers = generator.random((count, length), np.float32)
        if self.problem.markers == "halves":
            half = length // 2
            places = [generator.integers(half, size=count), generator.integers(half, length, size=count)]
        else:
            first, step = generator.integers(length, size=count), generator.integers(1, length, size=count)
            places = [first, (first + step) % length]
        x = np.stack([numbers, np.zeros_like(numbers)], axis=2)
        row = np.arange(count)
        for place in places:
            x[row, place, 1] = 1
        targets = numbers[row, places[0]] + numbers[row, places[1]]
        return {"x": x, "targets": targets, "weights": np.ones(count, np.float32)}
