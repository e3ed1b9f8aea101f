"""A first look at image files: size and mode of each, and which are damaged, found by decoding each of them once.

What was found in large folders is kept in the data folder, and valid as long as a file's size and time of change are.
"""

import concurrent.futures
import contextlib
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from arch_jax.console import console
from arch_jax.data.files import directories
from arch_jax.errors import RunError

#: EXIF's tag of an image's orientation.
ORIENTATION = 0x0112
#: Formats whose orientation Pillow itself applies, and gives the size of the turned image.
_UPRIGHT = ("TIFF",)
# Folders of at least so many images are kept in mind: smaller ones are decoded in a second or two.
_KEPT = 2000
# Images between two times that what was found is written down; of more than these, a line is printed.
_BETWEEN = 20_000
_VERSION = 1


class Facts(NamedTuple):
    """An image file.

    Attributes:
      height, width: of the image as it is stored.
      mode: Pillow's.
      orientation: EXIF's, 1 to 8; 1 is upright.
      problem: why it can't be decoded; None if it can, or if that was not asked.
    """

    height: int
    width: int
    mode: str
    orientation: int
    problem: str | None


def inspected(root: Path, paths: Sequence[Path], decode: bool = True) -> list[Facts]:
    """The facts of image files.

    Args:
      root: a folder that all of them are in.
      paths: of the files.
      decode: whether each is decoded wholly; else only its header is read.
    """
    if not decode:
        return [_inspect(path, decode=False) for path in paths]
    if len(paths) < _KEPT:
        return [_inspect(path) for path in paths]
    kept = f"inspected/{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]}.json"
    known = _read(kept)
    states = {path: (str(path.relative_to(root)), _state(path)) for path in paths}
    new = [path for path, (name, state) in states.items() if known.get(name, [None])[0] != state]
    if len(new) > _BETWEEN:
        console.tell(f"decoding {len(new):,} images of {str(root)!r}, once, to find damaged ones")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without Python's lock
        for first in range(0, len(new), _BETWEEN):
            part = new[first : first + _BETWEEN]
            for path, facts in zip(part, pool.map(_inspect, part)):
                name, state = states[path]
                known[name] = [state, facts]
            with contextlib.suppress(RunError):  # if it can't be kept, it is looked at again the next time
                content = json.dumps({"version": _VERSION, "files": known}).encode()
                directories.write_atomically(directories.writable_directory() / kept, content)
    return [Facts(*known[name][1]) for name, _ in states.values()]


def first_line(error: BaseException) -> str:
    """The reason for which Pillow does not decode an image, in a few words."""
    import PIL

    if isinstance(error, PIL.UnidentifiedImageError):  # its own message is about a buffer
        return "it has no image format that Pillow knows"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _inspect(path: Path, decode: bool = True) -> Facts:
    import PIL.Image

    try:
        # Not by its path: of a TIFF that lies on its side, Pillow 13 then maps the rows with the wrong width.
        with PIL.Image.open(io.BytesIO(path.read_bytes()) if decode else path) as image:
            upright = image.format in _UPRIGHT
            if decode:
                image.load()
            # A PNG's own method decodes it, to look behind its pixels.
            exif = image.getexif() if decode else PIL.Image.Image.getexif(image)
            orientation = 1 if upright else exif.get(ORIENTATION, 1)
            return Facts(image.height, image.width, image.mode, orientation if orientation in range(1, 9) else 1, None)
    except Exception as error:  # Pillow's decoders raise anything
        return Facts(0, 0, "", 1, first_line(error))


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read(kept: str) -> dict[str, list]:
    path = directories.find(kept)
    try:
        content = json.loads(path.read_bytes()) if path else {}
        return content["files"] if content.get("version") == _VERSION else {}
    except (OSError, ValueError, KeyError, AttributeError):  # a damaged one is made anew
        return {}
