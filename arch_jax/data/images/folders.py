"""Labelled images from a folder with one subfolder a class, decoded on demand."""

import dataclasses
import hashlib
import io
import os
from pathlib import Path

import numpy as np

from arch_jax.data.files import walk
from arch_jax.data.images.inspection import Facts, first_line, inspected
from arch_jax.data.images.parts import LabelledImages
from arch_jax.errors import RunError, UsageError, nearest

#: Files with other suffixes are ignored.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

#: Values of the field `damaged`.
DAMAGED: dict[str, str] = {
    "refuse": "a damaged image is named before the first step, and nothing is trained",
    "skip": "damaged images are left out, and counted",
    "unchecked": "nothing is decoded beforehand: a damaged image ends the run when its turn comes",
}

#: EXIF's orientations of images that lie on their side.
_SIDEWAYS = (5, 6, 7, 8)
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
      exif: whether EXIF's orientation is applied.
    """

    paths: tuple[Path, ...]
    classes: np.ndarray
    size: tuple[int, int] | None
    channels: int
    exif: bool

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
        import PIL.ImageOps

        try:
            # Not by its path: see `inspection`.
            with PIL.Image.open(io.BytesIO(path.read_bytes())) as image:
                if self.exif:
                    PIL.ImageOps.exif_transpose(image, in_place=True)
                pixels = np.asarray(image.convert("L" if self.channels == 1 else "RGB"), np.uint8)
        except Exception as error:  # Pillow's decoders raise anything
            raise RunError(
                f"image {str(path)!r} is damaged or gone: {first_line(error)}; a run goes on with the images that it "
                "began with: expected the whole file in its place"
            ) from error
        pixels = pixels.reshape(*pixels.shape[:2], self.channels)
        if self.size is not None and pixels.shape[:2] != self.size:
            raise RunError(f"image {str(path)!r} has changed its size to {pixels.shape[:2]}; expected {self.size}")
        return pixels


def read_folders(folder: str, exif: bool = True, damaged: str = "refuse", part: str | None = None) -> LabelledImages:
    """Opens a folder whose subfolders are classes, or one with such folders in the parts that it is split into.

    Parts have their usual names, in any case: train or training; validation, valid or val; test or testing. What is
    left out is counted in `notes`; see `walk.files`.

    Each image is decoded once here, so that no damaged one ends a run in its middle; see `inspection.inspected`.
    Classes are numbered in the order of their names.

    Args:
      folder: the folder.
      exif: whether images are turned as the orientation in their EXIF data says, as viewers do.
      damaged: one of `DAMAGED`.
      part: the part that is validated on, "validation" or "test"; None takes "validation", or "test" where there is no
        other. The images of the third part are left alone.

    Raises:
      UsageError: the folder is missing or has no classes, a class has no image, there are parts without "train", or
        not the one that is asked for, the parts have different classes, or a file is not an image, is damaged, or has
        more than 8 bits a channel; names it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"{folder!r} is not a folder; expected one with a folder for each class of images")
    train, test, skipped = _parts(folder, root, part)
    names = tuple(train)
    if len(names) < 2:
        raise UsageError(f"{folder!r} has {len(names)} class folders with images; expected at least 2")
    parts = [train] if test is None else [train, test]
    facts = _inspected(root, parts, damaged)
    wide = next((path for path, one in facts.items() if one.mode in _WIDE), None)
    if wide is not None:
        raise UsageError(
            f"{str(wide)!r} has more than 8 bits a channel (mode {facts[wide].mode!r}); expected 8 bits: convert it"
        )
    broken = {path for path, one in facts.items() if one.problem is not None}
    skipped["damaged"] += len(broken)
    parts = [
        {name: tuple(path for path in paths if path not in broken) for name, paths in part.items()} for part in parts
    ]
    for name, paths in [*parts[0].items(), *([("validation", sum(parts[1].values(), ()))] if test else [])]:
        if not paths:
            raise UsageError(f"{name!r} of {folder!r} has only damaged images; expected whole ones, or no such folder")
    used = [one for one in facts.values() if one.problem is None]
    turns = [exif and one.orientation != 1 for one in used]
    sizes = {
        (one.width, one.height) if exif and one.orientation in _SIDEWAYS else (one.height, one.width) for one in used
    }
    size = sizes.pop() if len(sizes) == 1 else None
    channels = 1 if {one.mode for one in used} <= set(_GREY) else 3
    train_files, *rest = (_files(part, names, size, channels, exif) for part in parts)
    digest = _hash(root, [train_files, *rest], any(turns))
    notes = walk.note(f"'images:{walk.readable(folder)}'", skipped)
    shown = tuple(map(walk.readable, names))
    return LabelledImages(train_files, rest[0] if rest else None, size, channels, 255, len(names), shown, digest, notes)


#: Class -> its images, in order.
Classes = dict[str, tuple[Path, ...]]


def _parts(folder: str, root: Path, part: str | None) -> tuple[Classes, Classes | None, walk.Skipped]:
    """The classes to train on; those of the part to validate on, if there is one; and what was left out."""
    inside = walk.folders(root)
    parts = walk.parts(inside.paths)
    if "train" not in parts or not walk.folders(parts["train"]).paths:
        if parts and len(parts) == len(inside.paths):
            named = ", ".join(repr(path.name) for path in parts.values())
            raise UsageError(
                f"{folder!r} has no classes, only {named}; expected a folder for each class, or one for each class in "
                "'train'"
            )
        if part is not None:
            raise UsageError(f"part is {part!r}, and {folder!r} has no parts, only classes; expected none")
        train, skipped = _listed(inside.paths)
        return train, None, inside.skipped + skipped
    skipped = inside.skipped + walk.Skipped(beside=len(inside.paths) - len(parts))
    train_folders = walk.folders(parts["train"])
    train, left_out = _listed(train_folders.paths)
    skipped += train_folders.skipped + left_out
    others = [name for name in ("validation", "test") if name in parts]
    if part is not None and part not in others:
        there = " or ".join(map(repr, others)) or "none, as there is only 'train'"
        raise UsageError(f"part is {part!r}, which {folder!r} does not have; expected {there}")
    if not others:
        return train, None, skipped
    held_out = parts[part or others[0]]
    test_folders = walk.folders(held_out)
    test, left_out = _listed(test_folders.paths)
    skipped += test_folders.skipped + left_out
    if not test:
        raise UsageError(f"{str(held_out)!r} has no class folders; expected those of {parts['train'].name!r}")
    for name in test:
        if name not in train:
            raise UsageError(
                f"class {name!r} of {str(held_out)!r} is not in {parts['train'].name!r}{nearest(name, train)}"
            )
    for name in others:
        if parts[name] != held_out:
            skipped[name] += len(walk.files(parts[name], ENDINGS).paths)
    return train, test, skipped


def _listed(folders: tuple[Path, ...]) -> tuple[Classes, walk.Skipped]:
    found: Classes = {}
    skipped = walk.Skipped()
    for path in folders:
        found[path.name], left_out = walk.files(path, ENDINGS)
        skipped += left_out
        if not found[path.name]:
            raise UsageError(
                f"class folder {str(path)!r} has no images; expected files such as {path.name}/1.png, or no such folder"
            )
    return found, skipped


def _inspected(root: Path, parts: list[Classes], damaged: str) -> dict[Path, Facts]:
    """The facts of all images; damaged ones are among them only where they are to be skipped."""
    paths = [path for part in parts for paths in part.values() for path in paths]
    facts = dict(zip(paths, inspected(root, paths, decode=damaged != "unchecked")))
    broken = [path for path, one in facts.items() if one.problem is not None]
    if broken and damaged != "skip":
        more = f", and {len(broken) - 1:,} more of {len(facts):,} files are damaged" if len(broken) > 1 else ""
        raise UsageError(
            f"{str(broken[0])!r} is not an image, or damaged: {facts[broken[0]].problem}{more}; remove what is "
            "damaged, or leave it out by data.damaged=skip"
        )
    return facts


def _files(part: Classes, names: tuple[str, ...], size, channels: int, exif: bool) -> ImageFiles:
    paths = [path for name in names for path in part.get(name, ())]
    labels = [number for number, name in enumerate(names) for _ in part.get(name, ())]
    return ImageFiles(tuple(paths), np.array(labels, np.int32), size, channels, exif)


def _hash(root: Path, parts: list[ImageFiles], turned: bool) -> str:
    digest = hashlib.sha256(b"turned\n" if turned else b"")
    paths = [path for part in parts for path in part.paths]
    lengths = [path.stat().st_size for path in paths]
    for path, length in zip(paths, lengths):
        digest.update(os.fsencode(path.relative_to(root).as_posix()) + b"\n%d\n" % length)
        if sum(lengths) <= _HASHED_WHOLE:
            digest.update(path.read_bytes())
    return digest.hexdigest()
