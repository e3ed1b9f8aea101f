"""Image sources by name, stratified splits, and resizing."""

import functools
import hashlib
import os
from typing import Any

import numpy as np

from arch_jax.data.images import folders, idx
from arch_jax.data.images.parts import ImagePart, LabelledImages
from arch_jax.errors import UsageError, unknown

SOURCES: dict[str, str] = {
    "digits": "1,797 handwritten digits of 8 x 8; comes with scikit-learn",
    "gate:NAME": "the four rows of a gate's truth table, as images of 1 x 2 pixels: and, or, nand, xor",
    "idx:DIR": "a folder in MNIST's layout: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-...; plain or .gz",
    "images:DIR": "a folder with a folder for each class, or with such folders in train and validation or test",
    "tfds:NAME": "a data set of TensorFlow Datasets with features image and label; or tfds:NAME/CONFIG",
}

#: Gate -> its value at (0, 0), (0, 1), (1, 0), (1, 1).
GATES = {"and": (0, 0, 0, 1), "or": (0, 1, 1, 1), "nand": (1, 1, 1, 0), "xor": (0, 1, 1, 0)}


def check_image_source(source: Any) -> None:
    """Raises UsageError, with the nearest names, where `source` is not the name of a source. Reads nothing."""
    if not isinstance(source, str):
        raise UsageError(f"a source is a name such as 'digits' or 'idx:DIR', not {source!r}")
    kind, colon, rest = source.partition(":")
    if kind == "gate":
        if rest not in GATES:
            raise unknown("gate", rest, GATES)
    elif colon and kind in ("idx", "images", "tfds"):
        if not rest.strip():
            expected = "tfds:NAME" if kind == "tfds" else f"{kind}:DIR"
            raise UsageError(f"source {source!r} names nothing to read; expected {expected!r}")
    elif source != "digits":
        if os.path.isdir(source):
            raise UsageError(
                f"unknown source {source!r}; to read the idx files in that folder, write 'idx:{source}', and for a "
                f"folder a class, 'images:{source}'"
            )
        raise unknown("source", source, SOURCES)


def read_images(source: str, exif: bool = True, damaged: str = "refuse", part: str | None = None) -> LabelledImages:
    """Reads a source, or opens it if it is too large for memory.

    Args:
      source: a name from `SOURCES`.
      exif: whether images of "images:DIR" are turned as their EXIF data says.
      damaged: what becomes of its damaged images; see `folders.DAMAGED`.
      part: the part of a source with several that is validated on; None takes the usual one.

    Raises:
      UsageError: the named data is missing or damaged, or a library that it needs is missing.
      RunError: a download failed.
    """
    kind, _, rest = source.partition(":")
    if kind == "tfds":
        from arch_jax.data.images import tfds  # a heavy library stands behind it

        return tfds.read_tfds(rest, part)
    if kind == "images":
        return folders.read_folders(rest, exif, damaged, part)
    if kind == "gate":
        rows = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.uint8).reshape(4, 1, 2, 1)
        table = ImagePart(rows, np.array(GATES[rest], np.int32))
        return _in_memory(source, table, table, top=1, names=("0", "1"), part=part)
    if kind == "idx":
        parts = {name: ImagePart(images[..., None], labels) for name, (images, labels) in idx.read_folder(rest).items()}
        return _in_memory(source, parts["train"], parts.get("test"), top=255, names=None, part=part)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("source 'digits' needs scikit-learn, which is missing; pip install scikit-learn") from error
    digits = load_digits()
    train = ImagePart(digits.images.astype(np.uint8)[..., None], digits.target.astype(np.int32))
    return _in_memory(source, train, None, top=16, names=tuple(map(str, digits.target_names)), part=part)


def _in_memory(
    source: str, train: ImagePart, test: ImagePart | None, top: int, names: tuple[str, ...] | None, part: str | None
) -> LabelledImages:
    if part == "validation" or (part == "test" and test is None):
        there = "none" if test is None else "'test'"
        raise UsageError(f"part is {part!r}, which source {source!r} does not have; expected {there}")
    classes = int(train.classes.max()) + 1 if names is None else len(names)
    digest = hashlib.sha256()
    for images in (train, test):
        if images is None:
            continue
        wrong = np.flatnonzero(images.classes >= classes)
        if len(wrong):
            raise UsageError(
                f"label {images.classes[wrong[0]]} of test image {wrong[0]} in source {source!r} is out of range; "
                f"expected the training part's labels, 0 to {classes - 1}"
            )
        digest.update(f"{images.images.shape}\n".encode())
        for array in (images.images, images.classes):
            digest.update(np.ascontiguousarray(array))
    _, height, width, channels = train.images.shape
    return LabelledImages(train, test, (height, width), channels, top, classes, names, digest.hexdigest())


def held_out(source: str, share: float, seed: int, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stratified split into training and validation images: the same fraction of every class, never all of a class.

    Args:
      source: its name, for error messages.
      share: the fraction held out, between 0 and 1.
      seed: of the draw.
      labels: of all images.

    Returns:
      Indices to train on, and to hold out, both in rising order.

    Raises:
      UsageError: the share is too small to hold out a single image.
    """
    generator = np.random.default_rng(seed)
    chosen, before, taken = [], 0, 0
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        # Rounded along the running total: each class is within one of its share, and so is the whole.
        before += len(members)
        take = min(round(share * before) - taken, len(members) - 1)
        taken += take
        chosen.append(members[:take])
    if not taken:
        raise UsageError(
            f"validation={share} of source {source!r} holds out none of its {len(labels)} images; expected a larger "
            f"fraction, or more images of each class"
        )
    held = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(labels)), held), held


def kept(share: float, seed: int, labels: np.ndarray) -> np.ndarray:
    """A stratified subset: the same fraction of every class, but at least one image of each.

    With the same seed, a smaller fraction's images are among those of a larger one.

    Args:
      share: above 0, at most 1.
      seed: of the draw.
      labels: of all images.

    Returns:
      Their indices in rising order.
    """
    generator = np.random.default_rng(seed)
    # Rounded class by class, not along the total as in `held_out`: only so are smaller shares parts of larger ones.
    members = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(np.concatenate([own[: max(1, round(share * len(own)))] for own in members]))


def resized(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes images by bilinear interpolation between pixel centres.

    When shrinking, each new pixel is the mean over all those it covers (a triangle as wide as the scale), as in Pillow
    and `jax.image.resize`, so that thin strokes don't vanish between samples.

    Args:
      images: "images height width channels".
      height: of the result.
      width: of the result.

    Returns:
      float32 "images height width channels".
    """
    count, old_height, old_width, channels = images.shape
    rows = _weights(old_height, height) @ images.astype(np.float32).reshape(count, old_height, old_width * channels)
    return (_weights(old_width, width) @ rows.reshape(count * height, old_width, channels)).reshape(
        count, height, width, channels
    )


@functools.lru_cache(maxsize=256)
def _weights(old: int, new: int) -> np.ndarray:
    """The weight of each of `old` pixels in each of `new`, "new old"."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    triangle = np.maximum(0, 1 - np.abs(np.arange(old) - centres[:, None]) / max(scale, 1.0))
    return (triangle / triangle.sum(axis=1, keepdims=True)).astype(np.float32)
