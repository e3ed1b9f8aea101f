"""Checkpoints in the safetensors format, read without trusting them and written whole or not at all.

A file is eight bytes with the header's length, a JSON header `{name: {dtype, shape, data_offsets}}`, and the numbers.
Everything that the header claims is checked against the file's size before memory is taken for any tensor. A large
checkpoint is several files with an index, `{"weight_map": {tensor: file}}`. No pickle: nothing that is read can run.

Source: https://huggingface.co/docs/safetensors, "Format".
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from arch_jax.errors import RunError, UsageError, nearest
from arch_jax.interop.strict_json import LARGEST_JSON, parse_object, read_object, shown


class Files(NamedTuple):
    """Names that a library gives the files of a checkpoint.

    Attributes:
      stem: the beginning of the names.
      plain: whether its own pickles are state dicts and nothing else, which no `save_pretrained` writes anew.
    """

    stem: str
    plain: bool = False

    @property
    def single(self) -> str:
        """The file, where there is one."""
        return f"{self.stem}.safetensors"

    @property
    def index(self) -> str:
        """The index that names the file of each tensor, where there are several files."""
        return f"{self.stem}.safetensors.index.json"

    def shard(self, number: int, count: int) -> str:
        """One of several, counted from 1."""
        return f"{self.stem}-{number:05}-of-{count:05}.safetensors"

    def include(self, name: str) -> bool:
        """True where a file of that name belongs to a checkpoint."""
        shard = re.fullmatch(rf"{self.stem}-[0-9]{{5}}-of-[0-9]{{5}}\.safetensors", name)
        return name in (self.single, self.index) or shard is not None


FILES = {
    "transformers": Files("model"),
    "diffusers": Files("diffusion_pytorch_model"),
    "mamba_ssm": Files("model", plain=True),
}
SINGLE, INDEX = FILES["transformers"].single, FILES["transformers"].index
#: Begins the code that a message gives for a PyTorch pickle.
CONVERTING = "this, run in that folder, converts it: "
#: Formats of weights that are not read, by the end of the file's name: PyTorch's pickles, and others.
_PICKLES, _OTHERS = (".bin", ".pt", ".pth", ".ckpt"), (".h5", ".msgpack", ".gguf")
#: Bytes of a number, by dtype. Packed dtypes (several numbers in a byte) are not among them.
_SIZES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1},
    **{"I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8},
}
_READABLE = {"F16": "<f2", "BF16": ml_dtypes.bfloat16, "F32": "<f4", "F64": "<f8"}
_MOST_DIMENSIONS = 32


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file: its shape is known, its numbers are read when an array is made of it.

    Attributes:
      path: the file.
      name: what the file calls it.
      dtype: as the format names it, e.g. "BF16".
      shape: sizes of the dimensions.
      start: bytes before its first number, from the beginning of the file.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The numbers, in the dtype they are stored in.

        Raises:
          UsageError: they are not floating-point numbers that weights are made of.
          RunError: the file can't be read, or has become shorter.
        """
        if self.dtype not in _READABLE:
            raise UsageError(
                f"the tensor {shown(self.name)} in {self.path.name!r} holds {self.dtype} numbers; "
                f"expected one of {', '.join(_READABLE)} (a quantised checkpoint has to be converted first)"
            )
        count = math.prod(self.shape)
        try:
            numbers = np.fromfile(self.path, _READABLE[self.dtype], count, offset=self.start)
        except OSError as error:
            raise RunError(f"cannot read {str(self.path)!r}: {error.strerror or error}") from error
        if numbers.size != count:
            raise RunError(
                f"{self.path.name!r} ends within the tensor {shown(self.name)}; it changed while it was read"
            )
        numbers = numbers.reshape(self.shape)
        return numbers if dtype is None else numbers.astype(dtype)


def folder_of(directory: Any) -> Path:
    """A folder as a person gives it.

    Raises:
      UsageError: no path.
    """
    try:
        return Path(directory)
    except TypeError:
        raise UsageError(
            f"directory is {shown(directory)}; expected the path of a folder, as a text or a pathlib.Path"
        ) from None


def plain_file(directory: Path, name: str) -> Path:
    """The file `name` in `directory`: right there, not reached through a path or a link that leads elsewhere.

    The links of the Hugging Face cache, from `snapshots/REVISION/` to `blobs/` beside it, are followed.

    Raises:
      RunError: `name` is not the plain name of a file, the file is missing, or it is a link that leads elsewhere.
    """
    plain = name.isprintable() and not set(name) & set("/\\:") and name not in ("", ".", "..") and len(name) < 200
    if not plain:
        raise RunError(f"{shown(name)} is not the plain name of a file; expected one such as {SINGLE!r} in {directory}")
    path = directory / name
    try:
        target = path.resolve(strict=True)
        home = directory.resolve(strict=True)
    except FileNotFoundError:
        raise RunError(f"the file {name!r} is missing in {str(directory)!r}") from None
    except (OSError, RuntimeError) as error:  # a ring of links is a RuntimeError before Python 3.13
        raise RunError(f"cannot read {str(path)!r}: {error}") from error
    allowed = [home] + ([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])
    if target.parent not in allowed:
        raise RunError(
            f"{str(path)!r} is a link that leads out of its folder, to {str(target)!r}; expected a file in it"
        )
    if not target.is_file():
        raise RunError(f"{str(path)!r} is not a file")
    return path


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, none of them read yet.

    Raises:
      RunError: the file can't be read or is not a whole, valid safetensors file.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            if start == b"version ":
                raise RunError(f"{path.name!r} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                claim = f"its header claims {length:,} bytes" if len(start) == 8 else "a header takes at least 8"
                raise RunError(f"{path.name!r} is cut off or no safetensors file: it has {size:,} bytes, and {claim}")
            if length > LARGEST_JSON:
                raise RunError(
                    f"the header of {path.name!r} claims {length:,} bytes; expected at most {LARGEST_JSON:,}"
                )
            content = file.read(length)
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    header = parse_object(content, f"the header of {path.name!r}")
    _check_metadata(header.pop("__metadata__", {}), path)
    return _tensors(header, path, 8 + length, size)


def _check_metadata(metadata: Any, path: Path) -> None:
    texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if not texts:
        raise RunError(f"the metadata of {path.name!r} is {shown(metadata)}; expected texts by name")
    # Other frameworks lay the same names out differently.
    if metadata.get("format", "pt") not in ("pt", "np", "mlx"):
        raise RunError(f"{path.name!r} is of format {shown(metadata['format'])}; expected 'pt', as transformers writes")


def _tensors(header: dict[str, Any], path: Path, start: int, size: int) -> dict[str, StoredTensor]:
    """The header's entries, once they are known to cover the `size - start` bytes of numbers exactly."""
    found, spans = {}, []
    for name, entry in header.items():
        where = f"the tensor {shown(name)} in {path.name!r}"
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise RunError(f"{where} is described by {shown(entry)}; expected its dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _SIZES:
            raise RunError(f"{where} has dtype {shown(dtype)}{nearest(str(dtype)[:20], _SIZES)}")
        if not _are_sizes(shape) or len(shape) > _MOST_DIMENSIONS:
            raise RunError(
                f"{where} has shape {shown(shape)}; expected at most {_MOST_DIMENSIONS} whole numbers from 0"
            )
        if not _are_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - start:
            raise RunError(
                f"{where} has data_offsets {shown(offsets)}; expected two numbers in order, "
                f"at most {size - start:,}, where the file ends"
            )
        expected = math.prod(shape) * _SIZES[dtype]
        if expected != offsets[1] - offsets[0]:
            raise RunError(
                f"{where} of shape {shown(shape)} and dtype {dtype} needs {shown(expected)} bytes, "
                f"but its data_offsets leave {offsets[1] - offsets[0]:,}"
            )
        found[name] = StoredTensor(path, name, dtype, tuple(shape), start + offsets[0])
        spans.append((*offsets, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            what = (
                "overlaps the tensor before it" if begin < position else f"leaves {begin - position:,} bytes before it"
            )
            raise RunError(
                f"the tensor {shown(name)} in {path.name!r} {what}; expected every byte to belong to one tensor"
            )
        position = end
    if position != size - start:
        raise RunError(
            f"{path.name!r} holds {size - start:,} bytes of numbers, but its tensors end at {position:,}; "
            "the file is damaged or was changed"
        )
    return found


def _are_sizes(value: Any) -> bool:
    """True for a list of whole numbers from 0 to 2^63 - 1."""
    # bool is an int to Python, and 2^63 - 1 is what any library can count to.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def open_checkpoint(directory: Path, files: Files = FILES["transformers"]) -> dict[str, StoredTensor]:
    """The tensors of the checkpoint in a folder, from one file or from the shards that its index names.

    Args:
      directory: the folder.
      files: how they are called.

    Raises:
      UsageError: the folder has no weights in safetensors format.
      RunError: a file is missing, damaged, or not where the index says.
    """
    if os.path.lexists(directory / files.single):
        return read_header(plain_file(directory, files.single))
    if not os.path.lexists(directory / files.index):
        raise _no_weights(directory, files)
    return _read_shards(directory, read_object(plain_file(directory, files.index)), files.index)


def _no_weights(directory: Path, files: Files) -> UsageError:
    names = sorted(path.name for path in directory.iterdir())
    others = [name for ends in (_PICKLES, _OTHERS) for name in names if name.endswith(ends)]
    if not others:
        there = [name for name in names if name.endswith(".safetensors")]
        beside = f"; {there[0]!r} is there, and would be read under the first of these names" if there else ""
        return UsageError(
            f"{str(directory)!r} holds neither {files.single!r} nor {files.index!r}{beside or '; expected one of them'}"
        )
    name = others[0]
    if name.startswith(FILES["diffusers"].stem):
        how = "load them in diffusers with use_safetensors=False and write them with model.save_pretrained(folder)"
    elif name.endswith(_PICKLES) and (files.plain or not name.startswith("pytorch_model")):
        # Copies: save_file takes no tensors that share memory, as tied ones do, nor any with gaps.
        how = (
            f"{CONVERTING}import torch, safetensors.torch; "
            f"found = torch.load({name!r}, map_location='cpu', weights_only=True); "
            "found = found.get('model', found.get('state_dict', found)); "
            "found = {name: x.clone().contiguous() for name, x in found.items() if torch.is_tensor(x)}; "
            f"safetensors.torch.save_file(found, {files.single!r})"
        )
    else:
        how = "load them in transformers and write them with model.save_pretrained(folder), as safetensors"
    return UsageError(
        f"{str(directory)!r} holds weights as {name!r}, which is not read: such files can run code; {how}"
    )


def _read_shards(directory: Path, index: dict[str, Any], file: str) -> dict[str, StoredTensor]:
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise RunError(f"the weight_map of {file} is {shown(places)}; expected the name of a file for each tensor")
    found: dict[str, StoredTensor] = {}
    shards = {name: plain_file(directory, name) for name in sorted(set(places.values()))}
    for shard, path in shards.items():
        for name, tensor in read_header(path).items():
            if places.get(name) != shard:
                where = f"says that it lies in {shown(places[name])}" if name in places else "does not name it"
                raise RunError(f"the tensor {shown(name)} lies in {shard!r}, but {file} {where}")
            found[name] = tensor
    for name, shard in places.items():
        if name not in found:
            raise RunError(f"the tensor {shown(name)} is missing in {shard!r}, where {file} says that it lies")
    return found


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file, as transformers reads it. The caller sees to it that nobody reads it half-written.

    Raises:
      RunError: the file cannot be written (no permission, disk full).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, {"format": "pt"})
    except SafetensorError as error:  # an I/O error comes as this too
        raise RunError(f"cannot write {str(path)!r}: {error}") from error
