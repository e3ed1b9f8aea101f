"""Labelled images of a source: a part in memory, a subset of a part, and the source's contents."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePart:
    """Images in memory. Any object with these two methods and a length can take its place.

    Attributes:
      images: uint8 "images height width channels".
      classes: int32 "images".
    """

    images: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
        """Images, uint8 "height width channels" each (one array where they are of one size), and int32 labels."""
        return self.images[indices], self.classes[indices]

    def labels(self) -> np.ndarray:
        """All labels, int32 "images"."""
        return self.classes


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a part: those at `indices`."""

    part: Any
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: np.ndarray) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
        """See `Part.take`."""
        return self.part.take(self.indices[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """The contents of a source.

    Attributes:
      train: the training images, an `ImagePart` or the like.
      validation: the source's own test part; None where it has none.
      size: (height, width) of every image; None where they may differ.
      channels: of every image.
      top: the brightest value of the source's range, the darkest of which is 0.
      classes: number of classes.
      class_names: their names; None where the source does not say.
      sha256: of the content.
      notes: sentences on what was left out.
    """

    train: Any
    validation: Any
    size: tuple[int, int] | None
    channels: int
    top: int
    classes: int
    class_names: tuple[str, ...] | None
    sha256: str
    notes: tuple[str, ...] = ()
