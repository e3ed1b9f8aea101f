"""Points in the plane: a mixture of Gaussians on a circle, which shows whether a generator finds every mode."""

import dataclasses
import hashlib
import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from arch_jax.data.base import Corpus, check_whole, stream
from arch_jax.errors import UsageError
from arch_jax.fields import component

if TYPE_CHECKING:
    import grain


@component("ring", kind="data")
@dataclasses.dataclass(frozen=True)
class Ring:
    """Equally likely Gaussians whose centres stand on a circle, centre k at the angle 2 pi k / modes.

    Attributes:
      modes: number of Gaussians.
      radius: of the circle.
      std: standard deviation of each Gaussian, in both coordinates.
      batch: points in a training batch, each batch drawn afresh.
      validation: points of the validation batch.

    Raises:
      UsageError: if a field is invalid.

    Source: L. Metz, B. Poole, D. Pfau, J. Sohl-Dickstein, "Unrolled Generative Adversarial Networks", 2017, sec. 3.1.
    """

    modes: int = 8
    radius: float = 1.0
    std: float = 0.01
    batch: int = 100
    validation: int = 2500

    def __post_init__(self):
        for name in ("modes", "batch", "validation"):
            check_whole(name, getattr(self, name), 1)
        for name in ("radius", "std"):
            value = getattr(self, name)
            real = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not real or not math.isfinite(value) or value <= 0:
                raise UsageError(f"{name} is {value!r}; expected a finite number above 0")

    def load(self) -> "RingCorpus":
        """The mixture, ready to be sampled from."""
        return RingCorpus(self)


class RingCorpus(Corpus):
    """A mixture of Gaussians on a circle. `Ring.load` makes it.

    Attributes:
      ring: the `Ring` it came from.
      centres: of the Gaussians, float32 "modes 2".
      std: their standard deviation, a float32 scalar array.
      facts: recorded by a run, as JSON values: source, sha256 (of the centres, the deviation and the validation
        points), modes, radius, std, validation_points.
    """

    #: Unit in which batches are counted.
    unit = "points"

    def __init__(self, ring: Ring):
        self.ring = ring
        angles = 2 * np.pi * np.arange(ring.modes) / ring.modes
        self.centres = (ring.radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)
        self.std = np.array(ring.std, np.float32)
        # A spawned sequence: no training batch, whatever its seed and number, is drawn from it.
        generator = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(1,)))
        self._held_out = {"x": self._draw(generator, ring.validation), "centres": self.centres, "std": self.std}
        digest = hashlib.sha256()
        for array in self._held_out.values():
            digest.update(f"{array.shape}".encode() + array.tobytes())
        self.facts: dict[str, Any] = {
            "source": "ring",
            "sha256": digest.hexdigest(),
            "modes": ring.modes,
            "radius": float(ring.radius),
            "std": float(ring.std),
            "validation_points": ring.validation,
        }

    @property
    def units_per_batch(self) -> int:
        """Points in a training batch."""
        return self.ring.batch

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of a training batch."""
        return {"x": ((self.ring.batch, 2), "float32")}

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> "grain.DatasetIterator":
        """Endless training batches: batch i is drawn from (seed, i), so that no two are the same.

        Args:
          seed: determines the points; 0 <= seed < 2**32.
          shard: (index, count): gives rows index * batch / count up to (index + 1) * batch / count of each batch.

        Returns:
          A Grain iterator, with `get_state` and `set_state`. A batch is a dict with `x`, float32 "batch 2".

        Raises:
          UsageError: a seed out of range; a shard that does not exist; a batch that count does not divide.
        """

        def rows(number: int, first: int, last: int) -> dict[str, np.ndarray]:
            return {"x": self._draw(np.random.default_rng([int(seed), number]), self.ring.batch)[first:last]}

        return stream(rows, self.ring.batch, seed, shard)

    def validation(self) -> tuple[dict[str, np.ndarray], ...]:
        """The one validation batch: `x`, float32 "validation 2", and the truth beside it: `centres` and `std`."""
        return (self._held_out,)

    def _draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        centres = self.centres[generator.integers(self.ring.modes, size=count)]
        return (centres + self.ring.std * generator.standard_normal((count, 2))).astype(np.float32)
