"""Labelled images from a folder with one subfolder a class, decoded on demand."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from arch_jax.data.images.parts import LabelledImages
from arch_jax.errors import RunError, UsageError, nearest

#: Files with other suffixes are ignored.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

#: Names of the evaluation part, beside "train".
_VALIDATION = ("validation", "val", "valid", "test")
_GREY = ("1", "L")
# 16 bits or floats: Pillow would silently clip them at 255.
_WIDE = ("I", "I;16", "I;16B", "I;16L", "F")
# Up to this many bytes, file contents are hashed; beyond it, names and sizes.
_HASHED_WHOLE = 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """The images of one part, by random access; see `parts.ImagePart`.

    Attributes:
      paths: of the images.
      classes: int32 "images".
      size: (height, width) of every image; None where they differ.
      channels: 1 or 3; what is stored otherwise is converted, transparency left out.
    """

    paths: tuple[Path, ...]
    classes: np.ndarray
    size: tuple[int, int] | None
    channels: int

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: np.ndarray) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
        """See `images.Part.take`.

        Raises:
          RunError: a file is damaged, gone, or of another size than it was; names it.
        """
        images = [self._decoded(self.paths[index]) for index in np.asarray(indices).tolist()]
        return images if self.size is None else np.stack(images), self.classes[indices]

    def labels(self) -> np.ndarray:
        """All labels, int32 "images"."""
        return self.classes

    def _decoded(self, path: Path) -> np.ndarray:
        import PIL.Image

        try:
            with PIL.Image.open(path) as image:
                pixels = np.asarray(image.convert("L" if self.channels == 1 else "RGB"), np.uint8)
        except Exception as error:  # Pillow's decoders raise anything
            raise RunError(f"image {str(path)!r} is damaged or gone: {_first_line(error)}; remove the file") from error
        pixels = pixels.reshape(*pixels.shape[:2], self.channels)
        if self.size is not None and pixels.shape[:2] != self.size:
            raise RunError(f"image {str(path)!r} has changed its size to {pixels.shape[:2]}; expected {self.size}")
        return pixels


def read_folders(folder: str) -> LabelledImages:
    """Opens a folder whose subfolders are classes, or one with the parts "train" and "validation" ("val", "test").

    Only each file's header is read here, for its size and number of channels. Classes are numbered in the
    order of their names. Images are as they are stored: EXIF orientation is not applied.

    Raises:
      UsageError: the folder is missing or has no classes, a class has no image, the parts have different classes, or
        a file is not an image of 8 bits a channel; names it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"{folder!r} is not a folder; expected one with a folder for each class of images")
    inside = _folders(root)
    if "train" in inside and _folders(inside["train"]):
        tests = [name for name in _VALIDATION if name in inside]
        train = _listed(inside["train"])
        names = tuple(train)
        test = _listed(inside[tests[0]]) if tests else None
        for name in test or ():
            if name not in train:
                raise UsageError(f"class {name!r} of {str(inside[tests[0]])!r} is not in 'train'{nearest(name, names)}")
    else:
        train, test = _listed(root), None
        names = tuple(train)
    if len(names) < 2:
        raise UsageError(f"{folder!r} has {len(names)} class folders with images; expected at least 2")
    parts = [train] if test is None else [train, test]
    sizes, modes = set(), set()
    for path in (path for part in parts for paths in part.values() for path in paths):
        size, mode = _header(path)
        sizes.add(size)
        modes.add(mode)
    size = sizes.pop() if len(sizes) == 1 else None
    channels = 1 if modes <= set(_GREY) else 3
    train_files, *rest = (_files(part, names, size, channels) for part in parts)
    digest = _hash(root, [train_files, *rest])
    return LabelledImages(train_files, rest[0] if rest else None, size, channels, 255, len(names), names, digest)


def _folders(root: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")}


def _listed(root: Path) -> dict[str, list[Path]]:
    """Class -> its images, in order."""
    found = {}
    for name, path in _folders(root).items():
        found[name] = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        if not found[name]:
            raise UsageError(
                f"class folder {str(path)!r} has no images; expected files such as {name}/1.png, or no such folder"
            )
    return found


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """(height, width) and Pillow's mode, without decoding."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            (width, height), mode = image.size, image.mode
    except Exception as error:
        raise UsageError(f"{str(path)!r} is not an image: {_first_line(error)}; remove the file") from error
    if mode in _WIDE:
        raise UsageError(f"{str(path)!r} has more than 8 bits a channel (mode {mode!r}); expected 8 bits: convert it")
    return (height, width), mode


def _files(part: dict[str, list[Path]], names: tuple[str, ...], size, channels: int) -> ImageFiles:
    paths = [path for name in names for path in part.get(name, ())]
    labels = [number for number, name in enumerate(names) for _ in part.get(name, ())]
    return ImageFiles(tuple(paths), np.array(labels, np.int32), size, channels)


def _hash(root: Path, parts: list[ImageFiles]) -> str:
    digest = hashlib.sha256()
    paths = [path for part in parts for path in part.paths]
    lengths = [path.stat().st_size for path in paths]
    for path, length in zip(paths, lengths):
        digest.update(f"{path.relative_to(root).as_posix()}\n{length}\n".encode())
        if sum(lengths) <= _HASHED_WHOLE:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
