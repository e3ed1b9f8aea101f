"""Sums of a few atoms of a known dictionary: they show whether a sparse code recovers the atoms."""

import dataclasses
import hashlib
import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from arch_jax.data.base import Corpus, check_whole, stream
from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.ranges import Count

if TYPE_CHECKING:
    import grain


@component("planted_dictionary", kind="data")
@dataclasses.dataclass(frozen=True)
class PlantedDictionary:
    """x = sum_k a_k atom_k + noise: `active` atoms, chosen uniformly, with a_k uniform in [0.5, 1.5].

    Attributes:
      atoms: number of atoms; more than coordinates make the dictionary overcomplete.
      features: coordinates of a vector.
      active: atoms in a sum.
      noise: standard deviation of normal noise in each coordinate.
      batch: vectors in a training batch, each batch drawn afresh.
      validation: vectors of the validation batch.
      dictionary_seed: of the atoms, whose directions are uniform on the sphere.

    Raises:
      UsageError: if a field is invalid.

    Source: M. Aharon, M. Elad, A. Bruckstein, "K-SVD", 2006, section V.A, where the a_k may be negative too.
    """

    atoms: int = 128
    features: int = 64
    active: int = 3
    noise: float = 0.0
    batch: int = 256
    validation: int = 2048
    dictionary_seed: Count = 0

    def __post_init__(self):
        for name in ("atoms", "features", "active", "batch", "validation"):
            check_whole(name, getattr(self, name), 1)
        check_whole("dictionary_seed", self.dictionary_seed, 0, 2**32)
        if self.active > self.atoms:
            raise UsageError(f"active is {self.active}; expected at most atoms, {self.atoms}")
        noise = self.noise
        if not isinstance(noise, numbers.Real) or isinstance(noise, bool) or not (math.isfinite(noise) and noise >= 0):
            raise UsageError(f"noise is {noise!r}; expected a finite number of at least 0, such as 0.05")

    def load(self) -> "DictionaryCorpus":
        """The dictionary, ready to be sampled from."""
        return DictionaryCorpus(self)


class DictionaryCorpus(Corpus):
    """Sums of atoms. `PlantedDictionary.load` makes it.

    Attributes:
      dictionary: the `PlantedDictionary` it came from.
      atoms: float32 "atoms features", each of length 1.
      facts: recorded by a run, as JSON values: source, sha256 (of the atoms and the validation vectors), atoms,
        features, active, noise, validation_vectors.
    """

    #: Unit in which batches are counted.
    unit = "vectors"

    def __init__(self, dictionary: PlantedDictionary):
        self.dictionary = dictionary
        generator = np.random.default_rng([int(dictionary.dictionary_seed), 0])
        atoms = generator.standard_normal((dictionary.atoms, dictionary.features))
        self.atoms = (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)
        # A spawned sequence: no training batch, whatever its seed and number, is drawn from it.
        drawing = np.random.default_rng(np.random.SeedSequence(int(dictionary.dictionary_seed), spawn_key=(1,)))
        self._held_out = {"x": self._draw(drawing, dictionary.validation), "atoms": self.atoms}
        digest = hashlib.sha256()
        for array in self._held_out.values():
            digest.update(f"{array.shape}".encode() + array.tobytes())
        self.facts: dict[str, Any] = {
            "source": "planted_dictionary",
            "sha256": digest.hexdigest(),
            "atoms": dictionary.atoms,
            "features": dictionary.features,
            "active": dictionary.active,
            "noise": float(dictionary.noise),
            "validation_vectors": dictionary.validation,
        }

    @property
    def units_per_batch(self) -> int:
        """Vectors in a training batch."""
        return self.dictionary.batch

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of a training batch."""
        return {"x": ((self.dictionary.batch, self.dictionary.features), "float32")}

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> "grain.DatasetIterator":
        """Endless training batches: batch i is drawn from (seed, i), so that no two are the same.

        Args:
          seed: determines the vectors, not the atoms; 0 <= seed < 2**32.
          shard: (index, count): gives rows index * batch / count up to (index + 1) * batch / count of each batch.

        Returns:
          A Grain iterator, with `get_state` and `set_state`. A batch is a dict with `x`, float32 "batch features".

        Raises:
          UsageError: a seed out of range; a shard that does not exist; a batch that count does not divide.
        """

        def rows(number: int, first: int, last: int) -> dict[str, np.ndarray]:
            return {"x": self._draw(np.random.default_rng([int(seed), number]), self.dictionary.batch)[first:last]}

        return stream(rows, self.dictionary.batch, seed, shard)

    def validation(self) -> tuple[dict[str, np.ndarray], ...]:
        """The one validation batch: `x`, float32 "validation features", and the truth beside it: `atoms`."""
        return (self._held_out,)

    def _draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        fields = self.dictionary
        # The atoms whose random numbers are the smallest: `active` of them, each set as likely as any other.
        order = generator.random((count, fields.atoms))
        chosen = np.argpartition(order, fields.active - 1, axis=1)[:, : fields.active]
        shares = generator.uniform(0.5, 1.5, (count, fields.active))
        x = np.einsum("ck,ckf->cf", shares, self.atoms[chosen])
        return (x + fields.noise * generator.standard_normal(x.shape)).astype(np.float32)
