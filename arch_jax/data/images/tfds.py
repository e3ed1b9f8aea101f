"""Labelled images from TensorFlow Datasets, read on demand, without TensorFlow where possible.

Importing this module imports TFDS, so only the functions that use it do.
"""

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from arch_jax.console import console
from arch_jax.data.files import directories
from arch_jax.data.images.parts import LabelledImages
from arch_jax.errors import ArchJaxError, RunError, UsageError, unknown

# TFDS's own names only: others ("huggingface:...") would run code from the network.
_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.\-+]+))?(:(?P<version>[\w.*]+))?")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# An image's compressed bytes, undecoded.
_UNDECODED = {"image": tfds.decode.SkipDecoding()}
# Up to this many bytes of records, all of them are hashed; of more, the beginning of each file.
_HASHED_WHOLE = 2**30
_HASHED_START = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The images of one split, by random access and on demand.

    Attributes:
      source: of records as TFDS stores them.
      features: read from a record: `image` and `label`.
      where: its name in error messages.
      size: (height, width) of every image; None where they differ.
      channels: of every image.
      classes: labels are below this.
    """

    source: Any
    features: tfds.features.FeaturesDict
    where: str
    size: tuple[int, int] | None
    channels: int
    classes: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """An image, uint8 "height width channels", and its label.

        Raises:
          RunError: the record is damaged, or is not what the data set declares.
        """
        images, labels = self.take(np.array([range(len(self))[index]]))
        return images[0], int(labels[0])

    def take(self, indices: np.ndarray) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
        """Images (one array where they are of one size) and int32 labels; see `parts.ImagePart`."""
        found = self._records(indices)
        labels = self._labels(found, indices)
        images = [self._decoded(record["image"], index) for record, index in zip(found, indices.tolist())]
        return images if self.size is None else np.stack(images), labels

    def labels(self) -> np.ndarray:
        """All labels, int32, from one pass over the records, whose images are not decoded."""
        chunks = [np.arange(start, min(start + 1024, len(self))) for start in range(0, len(self), 1024)]
        return np.concatenate([self._labels(self._records(chunk), chunk) for chunk in chunks])

    def labelled(self) -> bool:
        """True if the first image has a label; in existing data sets, all or none have."""
        return int(self._records(np.array([0]))[0]["label"]) >= 0

    def _records(self, indices: np.ndarray) -> Sequence[dict[str, Any]]:
        try:
            found = self.source.__getitems__([int(index) for index in indices])
            return [self.features.deserialize_example_np(record, decoders=_UNDECODED) for record in found]
        except Exception as error:  # whatever the reader raises on a damaged or removed file
            raise RunError(f"cannot read {self.where}: {_first_line(error)}; prepare the data set again") from error

    def _labels(self, records: Sequence[dict[str, Any]], indices: np.ndarray) -> np.ndarray:
        labels = np.array([record["label"] for record in records], np.int32)
        wrong = np.flatnonzero((labels < 0) | (labels >= self.classes))
        if len(wrong):
            raise RunError(
                f"image {indices[wrong[0]]} of {self.where} has label {labels[wrong[0]]}, which is out of range; "
                f"expected 0 to {self.classes - 1}"
            )
        return labels

    def _decoded(self, content: bytes, index: int) -> np.ndarray:
        import PIL.Image

        try:
            with PIL.Image.open(io.BytesIO(content)) as image:
                # ImageNet has a few images in grey or CMYK among those in colour.
                pixels = np.asarray(image.convert(_MODES[self.channels]), np.uint8)
        except Exception as error:  # Pillow's decoders raise anything
            raise RunError(f"image {index} of {self.where} is damaged: {_first_line(error)}") from error
        pixels = pixels.reshape(*pixels.shape[:2], self.channels)
        if self.size is not None and pixels.shape[:2] != self.size:
            given, expected = (" x ".join(map(str, shape)) for shape in (pixels.shape[:2], self.size))
            raise RunError(f"image {index} of {self.where} is {given}; expected {expected}, as the data set declares")
        return pixels


def read_tfds(name: str, validated: str | None = None) -> LabelledImages:
    """Opens a data set of TensorFlow Datasets, after downloading and preparing it if necessary.

    It is looked for in `$TFDS_DATA_DIR` where that is set, else in "tensorflow_datasets" in the data folder. Training
    images are its split "train", validation images "test", or "validation" where there is no test with labels.
    The hash is that of the record files where they take up to 1 GiB; else of their names, sizes and first MiB each.

    Args:
      name: "NAME", "NAME/CONFIG" or "NAME/CONFIG:VERSION".
      validated: the split that validation images are of, if it is to be another one of these two.

    Raises:
      UsageError: there is no such data set or no such split with labels, its images don't have labels, or it needs
        TensorFlow, which is missing.
      RunError: it can't be downloaded or prepared.
    """
    parsed = _NAME.fullmatch(name)
    if not parsed:
        raise UsageError(
            f"{name!r} names no data set of TensorFlow Datasets; expected 'tfds:NAME' or 'tfds:NAME/CONFIG'"
        )
    builder = _prepared(name, parsed)
    image, label = _features(name, builder.info.features)
    splits = builder.info.splits
    if "train" not in splits:
        raise UsageError(
            f"data set {name!r} has the splits {', '.join(map(repr, splits))}; expected 'train' among them"
        )
    names = tuple(label.names) if label.names and all(label.names) else None
    size = image.shape[:2] if all(image.shape[:2]) else None

    # Only these two are read, whatever else a record holds.
    features = tfds.features.FeaturesDict({"image": image, "label": label})

    def part(split: str) -> Records:
        with _sentences(f"cannot read data set {name!r}"):
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            source = builder.as_data_source(split=split, deserialize_method=raw)
        where = f"split {split!r} of data set {name!r}"
        return Records(source, features, where, size, image.shape[2], label.num_classes)

    # The labels of some test splits (ImageNet's) were never published; there they are -1.
    wanted = ("test", "validation") if validated is None else (validated,)
    rest = [part(split) for split in wanted if split in splits]
    rest = [records for records in rest if len(records) and records.labelled()]
    if validated is not None and not rest:
        raise UsageError(
            f"part is {validated!r}, and data set {name!r} has the splits {', '.join(map(repr, splits))}; expected one "
            "of them with labels"
        )
    train = part("train")
    files = [pathlib.Path(file) for split in splits.values() for file in split.filepaths]
    return LabelledImages(
        train, rest[0] if rest else None, size, image.shape[2], 255, label.num_classes, names, _hash(files)
    )


def _features(name: str, features: Any) -> tuple[tfds.features.Image, tfds.features.ClassLabel]:
    there = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = there.get("image"), there.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        listed = ", ".join(f"{key} ({type(value).__name__})" for key, value in sorted(there.items())) or "no names"
        raise UsageError(
            f"data set {name!r} has the features {listed}; expected 'image' (Image) and 'label' (ClassLabel)"
        )
    if image.np_dtype != np.uint8 or image.shape[2] not in _MODES:
        raise UsageError(
            f"the images of data set {name!r} have {image.shape[2]} channels of {np.dtype(image.np_dtype)}; expected "
            f"1, 3 or 4 channels of uint8"
        )
    return image, label


def _prepared(name: str, parsed: re.Match) -> tfds.core.DatasetBuilder:
    """The builder, its files written if missing."""
    given = os.environ.get("TFDS_DATA_DIR", "")
    if given:
        folders = [pathlib.Path(given).expanduser()]
    else:
        folders = [directories.data_directory(), directories.writable_directory()]
        folders = [folder / "tensorflow_datasets" for folder in folders]
    for folder in folders:
        builder = _builder(name, parsed, folder)
        if _is_prepared(builder):
            return builder
    with directories.locked(folder / parsed["name"]):
        builder = _builder(name, parsed, folder)
        if not _is_prepared(builder):  # else another process prepared it while this one waited
            with _sentences(f"cannot prepare data set {name!r} in {str(folder)!r}"), _quiet():
                builder.download_and_prepare()
    _hide_accelerators()
    return builder


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    # TFDS renames the finished folder into place. Its own is_prepared() logs a warning where there is none yet.
    return (builder.data_path / "dataset_info.json").exists()


def _builder(name: str, parsed: re.Match, folder: pathlib.Path) -> tfds.core.DatasetBuilder:
    with _sentences(f"cannot open data set {name!r}"):
        try:
            builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        except tfds.core.registered.DatasetNotFoundError:
            known = tfds.list_builders(with_community_datasets=False)
            raise unknown("data set of TensorFlow Datasets", parsed["name"], known) from None
        except (ValueError, AssertionError) as error:  # how TFDS refuses formats, configurations and versions
            if "File format is already set" in str(error):
                raise UsageError(
                    f"data set {name!r} in {str(folder)!r} is not in the format array_record, the only one that can be "
                    f"read in any order; move it away to have it prepared again, or set TFDS_DATA_DIR to another folder"
                ) from error
            configs = tfds.builder_cls(parsed["name"]).builder_configs
            if parsed["config"] and parsed["config"] not in configs:
                if not configs:
                    raise UsageError(
                        f"data set {parsed['name']!r} has no configurations, so not {parsed['config']!r}; expected "
                        f"'tfds:{parsed['name']}'"
                    ) from None
                raise unknown(f"configuration of data set {parsed['name']!r}", parsed["config"], configs) from None
            raise
    _hide_accelerators()
    return builder


def _hide_accelerators() -> None:
    """Keeps TensorFlow, if TFDS imported it, off the accelerators, whose whole memory it would claim."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and hasattr(tensorflow, "config"):
        for kind in ("GPU", "TPU"):
            with contextlib.suppress(RuntimeError, ValueError):  # it has begun to work: too late to say
                tensorflow.config.set_visible_devices([], kind)


@contextlib.contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Turns any exception of TFDS into a sentence that begins with `what`."""
    try:
        yield
    except ArchJaxError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ImportError) and (cause.name or "").split(".")[0] == "tensorflow":
                raise UsageError(
                    f"{what}: it needs TensorFlow, which is missing; pip install arch-jax[tfds]"
                ) from error
            cause = cause.__cause__ or cause.__context__
        raise RunError(f"{what}: {_first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Sends TFDS's output to the error stream, beside its progress bars; failed attempts are not reported each."""
    logger = logging.getLogger("urllib3.connectionpool")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(console.notes):
            yield
    finally:
        logger.setLevel(before)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:; ")[:300]


def _hash(files: list[pathlib.Path]) -> str:
    sizes = [file.stat().st_size for file in files]
    most = _HASHED_START if sum(sizes) > _HASHED_WHOLE else _HASHED_WHOLE
    digest = hashlib.sha256()
    for file, size in sorted(zip(files, sizes)):
        digest.update(f"{file.name} {size}\n".encode())
        with open(file, "rb") as content:
            left = min(most, size)
            while left > 0 and (chunk := content.read(min(left, 2**20))):
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()
