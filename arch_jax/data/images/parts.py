"""Labelled images as a source gives them: a part in memory, a subset of one, and what there is of a source."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePart:
    """Pictures in memory. Whatever has these two methods and a length can stand in its place.

    Attributes:
      images: uint8 "pictures height width channels".
      classes: int32 "pictures".
    """

    images: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
        """Pictures, uint8 "height width channels" each (one array where they are of one size), and int32 labels."""
        return self.images[indices], self.classes[indices]

    def labels(self) -> np.ndarray:
        """All labels, int32 "pictures"."""
        return self.classes


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some pictures of a part: those at `indices`."""

    part: Any
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: np.ndarray) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
        """See `Part.take`."""
        return self.part.take(self.indices[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """What a source holds.

    Attributes:
      train: the training pictures, a `ImagePart` or its like.
      validation: the source's own test part; None where it has none.
      size: (height, width) of every picture; None where they may differ.
      channels: of every picture.
      top: the brightest value of the source's range, the darkest of which is 0.
      classes: how many there are.
      class_names: their names; None where the source does not say.
      sha256: of the content.
    """

    train: Any
    validation: Any
    size: tuple[int, int] | None
    channels: int
    top: int
    classes: int
    class_names: tuple[str, ...] | None
    sha256: str
