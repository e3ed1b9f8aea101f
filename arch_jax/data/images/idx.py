"""Files in the idx format, in which MNIST and its relatives come: plain, or compressed with gzip.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

import contextlib
import gzip
import io
import math
import os
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np

from arch_jax.data.files import walk
from arch_jax.errors import UsageError, nearest

__all__ = ["LARGEST", "read_folder", "read_idx"]

#: The most bytes of values that are read: 4 GiB, 85 times MNIST's training images.
LARGEST = 4 * 2**30

# The third byte of a file says what its values are; they are stored with the highest byte first.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_DIMENSIONS = 8
# Bytes requested at a time: a header that declares a false size costs no more than this.
_CHUNK = 2**20


def read_idx(path: str | os.PathLike, dimensions: int | None = None) -> np.ndarray:
    """The array of an idx file, compressed or not (its first bytes tell, not its name).

    Memory grows with the bytes read and never with what a header declares: a file with a false size, or a small one
    that unpacks to a huge one, costs no more than the values that it declares and really has.

    Args:
      path: the file.
      dimensions: expected number of dimensions; None accepts 1 to 8.

    Returns:
      The array, in the machine's byte order.

    Raises:
      UsageError: the file is missing, unreadable, not idx, truncated, damaged, longer than it declares, or larger than
        `LARGEST`.
    """
    path = pathlib.Path(path)
    with _opened(path) as file:
        dtype, shape = _header(path, file, dimensions)
        declared = math.prod(shape) * dtype.itemsize
        if declared > LARGEST:
            raise UsageError(
                f"{str(path)!r} declares {_times(shape)} values of {dtype.itemsize} bytes, {declared:,} bytes in all; "
                f"expected at most {LARGEST:,} (4 GiB)"
            )
        # One byte more than declared, which should not be there; asking for it also has gzip check its checksum.
        content = _read(file, declared + 1)
    if len(content) < declared:
        raise UsageError(
            f"{str(path)!r} ends after {len(content):,} bytes of values; expected {declared:,}, for {_times(shape)} "
            f"values of {dtype.itemsize} bytes"
        )
    if len(content) > declared:
        raise UsageError(
            f"{str(path)!r} continues after the {declared:,} bytes of values it declares ({_times(shape)} values of "
            f"{dtype.itemsize} bytes); expected the file to end there"
        )
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[io.BufferedIOBase]:
    """The file's content, unpacked; read errors become a sentence."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"{str(path)!r} {what}; expected an idx file, such as 'train-images-idx3-ubyte.gz'")
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not packed:
                yield file
            else:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked
    except EOFError as error:
        raise UsageError(f"{str(path)!r} is cut off: its gzip stream has no end; expected the whole file") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{str(path)!r} is damaged: {error}; expected a whole gzip file, or a plain one") from error
    except OSError as error:
        raise UsageError(
            f"cannot read {str(path)!r}: {error.strerror or error}; expected a readable idx file"
        ) from error


def _header(path: pathlib.Path, file: io.BufferedIOBase, dimensions: int | None) -> tuple[np.dtype, tuple[int, ...]]:
    magic = _read(file, 4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        raise UsageError(
            f"{str(path)!r} is not an idx file: it begins with {bytes(magic).hex(' ') or 'nothing, being empty'}; "
            f"expected 00 00, a type from {', '.join(f'{code:02x}' for code in _DTYPES)}, and a number of dimensions"
        )
    there = magic[3]
    if not 1 <= there <= _MOST_DIMENSIONS or (dimensions is not None and there != dimensions):
        expected = f"from 1 to {_MOST_DIMENSIONS}" if dimensions is None else dimensions
        raise UsageError(f"{str(path)!r} has {there} dimensions; expected {expected}")
    sizes = _read(file, 4 * there)
    if len(sizes) < 4 * there:
        raise UsageError(
            f"{str(path)!r} ends in its header, after {4 + len(sizes)} bytes; expected {4 + 4 * there} for "
            f"{there} dimensions, and the values after them"
        )
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, 4 * there, 4))
    if not math.prod(shape):
        raise UsageError(f"{str(path)!r} declares {_times(shape)} values, which is none; expected sizes of at least 1")
    return np.dtype(_DTYPES[magic[2]]), shape


def _read(file: io.BufferedIOBase, count: int) -> bytearray:
    """`count` bytes, or those there are."""
    content = bytearray()
    while len(content) < count:
        chunk = file.read(min(_CHUNK, count - len(content)))
        if not chunk:
            break
        content += chunk
    return content


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


#: File name prefixes of a folder's parts, as MNIST's authors named them.
PARTS = {"train": "train", "test": "t10k"}


def read_folder(given: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The labelled images of a folder in MNIST's layout.

    Args:
      given: the folder, with train-images-idx3-ubyte, train-labels-idx1-ubyte, and, unless there is no test part,
        t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each of them plain or with ".gz" at its end.

    Returns:
      "train" and, where it is there, "test": images, uint8 "images height width", and labels, int32 "images".

    Raises:
      UsageError: a missing or damaged file; values that are not unsigned bytes; images and labels that differ in
        number; test images of another size than the training images.
    """
    folder = pathlib.Path(os.path.expanduser(given))
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(f"{given!r} {what}; expected a folder with {_names('train')[0]} and {_names('train')[1]}")
    there = walk.names(folder)
    parts = {}
    for part in PARTS:
        images, labels = (_find(folder, name, there) for name in _names(part))
        if part == "test" and images is None and labels is None:
            continue  # then a share of the training part is held out
        for path, name in ((images, _names(part)[0]), (labels, _names(part)[1])):
            if path is None:
                raise UsageError(f"folder {given!r} has no {name} (nor {name}.gz){nearest(name, there)}")
        parts[part] = _pair(images, labels)
    sizes = {part: images.shape[1:] for part, (images, _) in parts.items()}
    if len(set(sizes.values())) > 1:
        raise UsageError(
            f"the test images in {given!r} are {_times(sizes['test'])} and the training images "
            f"{_times(sizes['train'])}; expected one size"
        )
    return parts


def _names(part: str) -> tuple[str, str]:
    return f"{PARTS[part]}-images-idx3-ubyte", f"{PARTS[part]}-labels-idx1-ubyte"


def _find(folder: pathlib.Path, name: str, there: list[str]) -> pathlib.Path | None:
    return next((folder / found for found in (name, f"{name}.gz") if found in there), None)


def _pair(images_path: pathlib.Path, labels_path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    for path, array in ((images_path, images), (labels_path, labels)):
        if array.dtype != np.uint8:
            raise UsageError(f"{str(path)!r} holds values of type {array.dtype}; expected unsigned bytes (type 08)")
    if len(images) != len(labels):
        raise UsageError(
            f"{str(images_path)!r} has {len(images):,} images and {str(labels_path)!r} {len(labels):,} labels; "
            f"expected a label for each image"
        )
    return images, labels.astype(np.int32)
