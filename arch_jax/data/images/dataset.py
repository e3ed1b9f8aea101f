"""Labelled images as batches: from a source's name to an endless, resumable stream of training batches."""

import dataclasses
import functools
import math
import numbers
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from arch_jax.data.base import Corpus, ValidationBatches, check_whole, stream
from arch_jax.data.images import folders, sources
from arch_jax.data.images.augmentation import Augmentation
from arch_jax.data.images.parts import LabelledImages, Subset
from arch_jax.errors import UsageError, unknown
from arch_jax.fields import Kind, component
from arch_jax.ranges import Count, Signed

if TYPE_CHECKING:
    import grain

# Far beyond any resolution that is trained on: a typo should not exhaust the machine's memory.
_LARGEST_SIDE = 4096


@component("images", kind="data")
@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images and their batching.

    Attributes:
      source: "digits", "gate:NAME", "idx:DIR", "images:DIR" or "tfds:NAME[/CONFIG]"; see `sources.SOURCES`.
      batch: images in a batch.
      resize: resolution to which images are scaled first (bilinear, antialiased when shrinking); None keeps it.
      pad: pixels of background, the source's darkest value, that are then put on every side.
      low: the darkest value of the source's range is mapped to this.
      high: the brightest value of the source's range is mapped to this.
      validation: the fraction held out, stratified by class, if the source has no test part of its own.
      split_seed: seed of the validation split and of the training subset.
      train_share: the fraction of the training images used, stratified by class (at least one of each); the
        images of a smaller fraction are among those of a larger one. The validation set does not depend on it.
      augment: random augmentation of the training images; see `Augmentation`.
      exif: whether the EXIF orientation of the files of "images:DIR" is applied, as cameras mean it and viewers do.
        (A TIFF's orientation is a part of its format and always applied.)
      damaged: what becomes of damaged images in "images:DIR": "refuse", "skip" or "unchecked"; see `folders.DAMAGED`.
      part: the source's own part that validation images are of, "validation" or "test"; None takes "validation" of
        "images:DIR", or "test" where there is no other, and "test" of "tfds:NAME", or "validation" where it has no
        labels. `arch-jax evaluate RUN --on SOURCE --set data.part=test` measures a finished run on test images.

    Raises:
      UsageError: if a field is invalid.
    """

    source: str = "digits"
    batch: int = 64
    resize: int | None = None
    pad: Count = 0
    low: Signed = 0.0
    high: Signed = 1.0
    validation: float = 0.2
    split_seed: Count = 0
    train_share: float = 1.0
    augment: Annotated[Augmentation, Kind("augmentation")] = Augmentation()
    exif: bool = True
    damaged: str = "refuse"
    part: Literal["validation", "test"] | None = None

    def __post_init__(self):
        sources.check_image_source(self.source)
        check_whole("batch", self.batch, 1)
        if self.resize is not None:
            check_whole("resize", self.resize, 1, _LARGEST_SIDE + 1)
        check_whole("pad", self.pad, 0, _LARGEST_SIDE + 1)
        check_whole("split_seed", self.split_seed, 0)
        for name in ("low", "high"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
                raise UsageError(f"{name} is {value!r}; expected a finite number, such as 0.0")
        if self.low >= self.high:
            raise UsageError(f"low is {self.low} and high is {self.high}; expected low to be below high")
        if not isinstance(self.validation, numbers.Real) or not 0 < self.validation < 1:
            raise UsageError(
                f"validation is {self.validation!r}; expected a fraction between 0 and 1, exclusive, such as 0.2"
            )
        if not isinstance(self.damaged, str) or self.damaged not in folders.DAMAGED:
            raise unknown("value of damaged", str(self.damaged), folders.DAMAGED)
        if self.part not in (None, "validation", "test"):
            raise unknown("part", str(self.part), ("validation", "test"))
        share = self.train_share
        if not isinstance(share, numbers.Real) or isinstance(share, bool) or not 0 < share <= 1:
            raise UsageError(f"train_share is {share!r}; expected a fraction above 0 and up to 1, such as 0.1")

    def load(self) -> "ImagesCorpus":
        """Reads the source (a `tfds:` source is only opened: its images are read on demand).

        If images are held out, or a fraction is chosen, the labels of all images are read.

        Raises:
          UsageError: the source is unknown, missing or damaged, has images of several sizes while `resize` is None,
            labels out of range, or fewer training images than a batch.
          RunError: a download failed, or a library that the source needs is missing.
        """
        found = sources.read_images(self.source, self.exif, self.damaged, self.part)
        if found.size is None and self.resize is None:
            raise UsageError(
                f"source {self.source!r} does not say that its images are of one size; expected resize, such as 224"
            )
        if found.validation is None or self.train_share < 1:
            found = self._divided(found)
        if len(found.train) < self.batch:
            used = "" if self.train_share == 1 else f"with train_share={self.train_share}, "
            raise UsageError(
                f"{used}source {self.source!r} has {len(found.train):,} training images, and batch is {self.batch}; "
                f"expected at most batch {len(found.train)}"
            )
        return ImagesCorpus(self, found)

    def _divided(self, found: LabelledImages) -> LabelledImages:
        """Splits off validation images if the source has no test part, and keeps the chosen fraction for training."""
        seed, labels = int(self.split_seed), found.train.labels()
        train, validation = np.arange(len(labels)), found.validation
        if validation is None:
            train, held_out = sources.held_out(self.source, float(self.validation), seed, labels)
            validation = Subset(found.train, held_out)
        if self.train_share < 1:
            train = train[sources.kept(float(self.train_share), seed, labels[train])]
        return dataclasses.replace(found, train=Subset(found.train, train), validation=validation)


class ImagesCorpus(Corpus):
    """Labelled images, read and split. `Images.load` makes it.

    Attributes:
      images: the `Images` it came from.
      classes: number of classes.
      class_names: their names; None where the source does not say.
      low, high: values of the darkest and the brightest pixel of the source's range in a batch.
      notes: sentences on what was left out of the source.
      facts: recorded by a run, as JSON values: source, sha256, train_images, validation_images, classes,
        class_names where the source says them, height, width, channels (of an image as it is in a batch).
    """

    #: Unit in which batches are counted.
    unit = "images"

    def __init__(self, images: Images, found: LabelledImages):
        self.images = images
        self.classes, self.class_names, self.notes = found.classes, found.class_names, found.notes
        self.low, self.high = float(images.low), float(images.high)
        self._found = found
        # Each of the at most 256 values of the source, as the number that it becomes.
        values = np.arange(256) / found.top
        self._table = (images.low + (images.high - images.low) * values).astype(np.float32)
        height, width = found.size if images.resize is None else (images.resize, images.resize)
        self._shape = (height + 2 * images.pad, width + 2 * images.pad, found.channels)
        self.facts: dict[str, Any] = {
            "source": images.source,
            "sha256": found.sha256,
            "train_images": len(found.train),
            "validation_images": len(found.validation),
            "classes": found.classes,
            **({} if found.class_names is None else {"class_names": list(found.class_names)}),
            **dict(zip(("height", "width", "channels"), self._shape)),
        }

    @property
    def units_per_batch(self) -> int:
        """Images in a training batch."""
        return self.images.batch

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of a training batch: known before there is one."""
        batch = self.images.batch
        mixed = {"other_labels": ((batch,), "int32"), "shares": ((batch,), "float32")}
        return {
            "images": ((batch, *self._shape), "float32"),
            "labels": ((batch,), "int32"),
            "weights": ((batch,), "float32"),
            **(mixed if self.images.augment.mixes else {}),
        }

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> "grain.DatasetIterator":
        """Endless training batches, determined by `seed` alone: each image once an epoch, reshuffled every epoch.

        Args:
          seed: determines the order; 0 <= seed < 2**32.
          shard: (index, count): gives rows index * batch / count up to (index + 1) * batch / count of each batch, for
            hosts that load a part each. The shards, one below the other, are the unsharded batch.

        Returns:
          A Grain iterator, with `get_state` and `set_state`. A batch is a dict of `images`, float32 "batch height width
          channels", `labels`, int32 "batch", and `weights`, float32 "batch", all 1. Where the batch does not divide an
          epoch, a batch holds the end of one and the start of the next. Where images are mixed in pairs there are
          `other_labels`, int32, and `shares`, float32: each image's fraction of its own label.

        Raises:
          UsageError: a seed out of range; a shard that does not exist; a batch that count does not divide.
        """
        part, batch = self._found.train, self.images.batch
        count = len(part)

        @functools.lru_cache(maxsize=2)
        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng([int(seed), epoch]).permutation(count)

        def rows(number: int, first: int, last: int) -> dict[str, np.ndarray]:
            places = range(number * batch + first, number * batch + last)
            found = augmented(places)
            if not self.images.augment.mixes:
                return found
            # Each image's partner is that as far from the batch's other end, which may be in another shard.
            others = range((number + 1) * batch - 1 - first, (number + 1) * batch - 1 - last, -1)
            if set(others) == set(places):
                partners = {name: array[::-1] for name, array in found.items()}
            else:
                partners = augmented(others)
            generator = np.random.default_rng([int(seed), 2, number])
            images, share = self.images.augment.mixed(found["images"], partners["images"], generator)
            shares = np.full(len(images), share, np.float32)
            return found | {"images": images, "other_labels": partners["labels"], "shares": shares}

        def augmented(places: range) -> dict[str, np.ndarray]:
            indices = np.array([order(place // count)[place % count] for place in places])
            if self.images.augment == Augmentation():
                return self._batch(part, indices)
            return self._augmented(part, indices, [np.random.default_rng([int(seed), 1, place]) for place in places])

        return stream(rows, batch, seed, shard)

    def validation(self, batch: int | None = None) -> ValidationBatches:
        """All validation images once, in order.

        Args:
          batch: images in a batch; the training batch by default.

        Returns:
          An iterable of batches like those of `train`, all of one shape. What is left over at the end is padding:
          images and labels of 0, of weight 0.

        Raises:
          UsageError: batch is not at least 1.
        """
        batch = self.images.batch if batch is None else check_whole("batch", batch, 1)
        part = self._found.validation
        return ValidationBatches(functools.partial(self._batch, part), len(part), batch)

    def training_sample(self, count: int, batch: int | None = None) -> ValidationBatches:
        """Some training images once each, without augmentation, to fit a probe of the features.

        Args:
          count: the number of images, or all if there are fewer. `split_seed` determines which, and their order.
          batch: images in a batch; the training batch by default.

        Returns:
          An iterable of batches like those of `validation`.

        Raises:
          UsageError: count or batch is not at least 1.
        """
        check_whole("count", count, 1)
        batch = self.images.batch if batch is None else check_whole("batch", batch, 1)
        total = len(self._found.train)
        generator = np.random.default_rng([int(self.images.split_seed), 1])
        part = Subset(self._found.train, generator.permutation(total)[:count])
        return ValidationBatches(functools.partial(self._batch, part), len(part), batch)

    def _augmented(
        self, part: Any, indices: np.ndarray, generators: list[np.random.Generator]
    ) -> dict[str, np.ndarray]:
        found, labels = part.take(indices)
        fields, top = self.images, self._found.top
        images = []
        for image, generator in zip(found, generators):
            pixels = fields.augment.pixels(image, generator, fields.resize, top)
            scaled = self._padded(self._scaled(pixels[None]))[0]
            images.append(fields.augment.values(scaled, generator, self.low, self.high))
        return {"images": np.stack(images), "labels": labels, "weights": np.ones(len(labels), np.float32)}

    def _batch(self, part: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
        found, labels = part.take(indices)
        side = self.images.resize
        if side is None:
            images = self._table[found]
        else:
            groups = [found] if isinstance(found, np.ndarray) else [image[None] for image in found]
            images = self._scaled(np.concatenate([sources.resized(group, side, side) for group in groups]))
        images = self._padded(images)
        return {"images": images, "labels": labels, "weights": np.ones(len(labels), np.float32)}

    def _scaled(self, pixels: np.ndarray) -> np.ndarray:
        """Maps numbers of the source's range to [low, high]."""
        images = pixels * np.float32((self.images.high - self.images.low) / self._found.top)
        return np.clip(images + np.float32(self.images.low), self._table[0], self._table[self._found.top])

    def _padded(self, images: np.ndarray) -> np.ndarray:
        pad = self.images.pad
        if not pad:
            return images
        return np.pad(images, [(0, 0), (pad, pad), (pad, pad), (0, 0)], constant_values=np.float32(self.images.low))
