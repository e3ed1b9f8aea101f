"""Tensors of image models <-> variables of ours, by the rows of a `PictureType`."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from arch_jax.errors import UsageError, nearest
from arch_jax.interop.pictures.picture_type import Fixed, PictureType, Row
from arch_jax.interop.strict_json import shown
from arch_jax.interop.tensors import Shape, check_finite, read_tensor, wrong_shape

#: How many batches a PyTorch batch norm has counted: nothing is computed from it.
_COUNTS = re.compile(r".*\.num_batches_tracked")

#: How far tables may be from ours: sines of angles up to some tens, in float32 or less.
_ROUNDING = {"bfloat16": 2e-2, "float16": 2e-3}


def naming_of(kind: PictureType, module: nn.Module, names: Iterable[str], among: Iterable[str] | None = None) -> str:
    """Which naming a checkpoint's names follow: the one that shares most of them.

    Args:
      kind: whose namings.
      module: what the tensors are of.
      names: of the checkpoint's tensors.
      among: the namings in question; none is all.
    """
    names = set(names)
    shared = lambda naming: len(names & {name for name, *_ in _each(kind.rows[naming](module))})
    return max(kind.rows if among is None else among, key=shared)


def variables_of(kind: PictureType, tensors: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """Variables of `module`, in its parameter dtype, from the tensors of a checkpoint in either naming.

    All names and shapes are checked before any number is read.

    Raises:
      UsageError: a tensor is missing, unknown or of another shape, its numbers don't fit the parameter dtype, or they
        are not those of a table that is computed here.
      RunError: a tensor holds NaN or infinity, or can't be read.
    """
    rows, shapes = kind.rows[naming_of(kind, module, tensors)](module), _shapes(module, kind.picture(module))
    names = set()
    for name, row, _ in _each(rows):
        if name not in tensors:
            raise UsageError(f"the tensor {name!r} is missing from the checkpoint{nearest(name, tensors)}")
        expected = _theirs(row, shapes)
        if tuple(tensors[name].shape) not in ((expected, (*expected, 1, 1)) if row.window else (expected,)):
            raise wrong_shape(name, tensors[name].shape, expected)
        names.add(name)
    for name in tensors:
        if name not in names and not _COUNTS.fullmatch(name):
            raise UsageError(
                f"the checkpoint has the tensor {shown(name)}, which the module lacks{nearest(name[:80], names)}"
            )
    dtype = np.dtype(module.parameter_dtype)
    found: dict[str, np.ndarray] = {path: np.empty(shape, dtype) for path, shape in shapes.items()}
    for name, row, layer in _each(rows):
        array = read_tensor(name, tensors[name], dtype)
        if row.fixed is not None:
            _check_fixed(name, array, row.fixed)
            continue
        end = array.ndim - row.after - 2 * (row.window and array.ndim > 3)
        array = array.reshape(array.shape[row.ones : end])
        array = array if row.axes is None else array.transpose(row.axes)
        array = array if row.patch is None else array.reshape(-1, array.shape[-1])
        ends = np.cumsum([_ours(row, path, shapes)[-1] for path in row.ours])[:-1] if row.ours[1:] else []
        for path, piece in zip(row.ours, np.split(array, ends, axis=-1)):
            found[path][... if layer is None else layer] = piece
    return unflatten_dict({path: jnp.asarray(array) for path, array in found.items()}, sep="/")


def tensors_of(
    kind: PictureType, module: nn.Module, variables: Any, naming: str | None = None
) -> Iterator[tuple[str, Shape, np.dtype, Any]]:
    """The tensors of a checkpoint from the variables of `module`: name, shape, dtype, and a function that makes it.

    Args:
      kind: how the module's class is written.
      module: what the variables are of.
      variables: its variables.
      naming: one of the type's; none is the library's own.

    Raises:
      UsageError: the variables are not those of the module.
    """
    rows, shapes = kind.rows[naming or next(iter(kind.rows))](module), _shapes(module, kind.picture(module))
    leaves = flatten_dict(dict(variables), sep="/")
    for path in sorted(shapes.keys() - leaves.keys()):
        raise UsageError(f"the variables lack {path!r}, which the module has{nearest(path, leaves)}")
    for path in sorted(leaves.keys() - shapes.keys()):
        raise UsageError(f"the variables have {path!r}, which the module lacks{nearest(path, shapes)}")
    for path, shape in shapes.items():
        if leaves[path].shape != shape:
            raise wrong_shape(path, leaves[path].shape, shape)
    for name, row, layer in _each(rows):
        shape = _theirs(row, shapes)
        if row.fixed is not None:
            dtype = np.dtype(next(iter(leaves.values())).dtype)
            yield name, shape, dtype, lambda fixed=row.fixed, dtype=dtype: fixed.make().astype(dtype)
            continue

        def make(name: str = name, row: Row = row, layer: int | None = layer, shape: Shape = shape) -> np.ndarray:
            parts = [np.asarray(leaves[path] if layer is None else leaves[path][layer]) for path in row.ours]
            array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
            check_finite(name, array)
            if row.patch is not None:
                array = array.reshape(row.patch, row.patch, -1, array.shape[-1])
            array = array if row.axes is None else array.transpose(np.argsort(row.axes))
            return np.ascontiguousarray(array).reshape(shape)

        yield name, shape, np.dtype(leaves[row.ours[0]].dtype), make


def _check_fixed(name: str, array: np.ndarray, fixed: Fixed) -> None:
    """Refuses other numbers than those that are computed here, but for the rounding of the dtype they came in."""
    table = fixed.make().astype(array.dtype)
    off = float(np.abs(np.asarray(array, np.float64) - np.asarray(table, np.float64)).max())
    if off > _ROUNDING.get(array.dtype.name, 1e-4):
        raise UsageError(
            f"the tensor {name!r} is up to {off:.2g} from the table that the architecture fixes; expected that table"
        )


def _each(rows: Iterable[Row]) -> Iterator[tuple[str, Row, int | None]]:
    """The name of every tensor, its row, and its layer."""
    for row in rows:
        for layer in [None] if row.layers is None else range(row.layers):
            yield row.theirs.format(layer), row, layer


def _ours(row: Row, path: str, shapes: Mapping[str, Shape]) -> Shape:
    """The shape of one of our arrays, of one layer."""
    return shapes[path] if row.layers is None else shapes[path][1:]


def _theirs(row: Row, shapes: Mapping[str, Shape]) -> Shape:
    """The shape of their tensor from ours."""
    if row.fixed is not None:
        return row.fixed.shape
    parts = [_ours(row, path, shapes) for path in row.ours]
    shape = (*parts[0][:-1], sum(part[-1] for part in parts))
    if row.patch is not None:
        shape = (row.patch, row.patch, shape[0] // row.patch**2, shape[1])
    shape = shape if row.axes is None else tuple(shape[axis] for axis in np.argsort(row.axes))
    return (1,) * row.ones + shape + (1,) * row.after


@functools.lru_cache(maxsize=16)
def _shapes(module: nn.Module, picture: tuple[int, int, int]) -> dict[str, Shape]:
    """Path -> shape of the variables for pictures of "height width channels"; nothing is allocated."""
    pictures = jax.ShapeDtypeStruct((1, *picture), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), pictures)
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}
