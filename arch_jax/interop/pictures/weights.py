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
from arch_jax.interop.pictures.picture_type import PictureType, Row
from arch_jax.interop.strict_json import shown
from arch_jax.interop.tensors import Shape, check_finite, read_tensor, wrong_shape

#: How many batches a PyTorch batch norm has counted: nothing is computed from it.
_COUNTS = re.compile(r".*\.num_batches_tracked")


def naming_of(kind: PictureType, module: nn.Module, names: Iterable[str]) -> str:
    """Which naming a checkpoint's names follow: the one that shares most of them."""
    names = set(names)
    return max(kind.rows, key=lambda naming: len(names & {row.theirs for row in kind.rows[naming](module)}))


def variables_of(kind: PictureType, tensors: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """Variables of `module`, in its parameter dtype, from the tensors of a checkpoint in either naming.

    All names and shapes are checked before any number is read.

    Raises:
      UsageError: a tensor is missing, unknown or of another shape, or its numbers don't fit the parameter dtype.
      RunError: a tensor holds NaN or infinity, or can't be read.
    """
    rows, shapes = kind.rows[naming_of(kind, module, tensors)](module), _shapes(module, kind.picture(module))
    names = {row.theirs for row in rows}
    for row in rows:
        if row.theirs not in tensors:
            raise UsageError(f"the tensor {row.theirs!r} is missing from the checkpoint{nearest(row.theirs, tensors)}")
        expected = _theirs(row, shapes[row.ours])
        if tuple(tensors[row.theirs].shape) != expected:
            raise wrong_shape(row.theirs, tensors[row.theirs].shape, expected)
    for name in tensors:
        if name not in names and not _COUNTS.fullmatch(name):
            raise UsageError(
                f"the checkpoint has the tensor {shown(name)}, which the module lacks{nearest(name[:80], names)}"
            )
    dtype, found = np.dtype(module.parameter_dtype), {}
    for row in rows:
        array = read_tensor(row.theirs, tensors[row.theirs], dtype)
        found[row.ours] = jnp.asarray(array if row.axes is None else array.transpose(row.axes))
    return unflatten_dict(found, sep="/")


def tensors_of(
    kind: PictureType, module: nn.Module, variables: Any, naming: str = "transformers"
) -> Iterator[tuple[str, Shape, np.dtype, Any]]:
    """The tensors of a checkpoint from the variables of `module`: name, shape, dtype, and a function that makes it.

    Raises:
      UsageError: the variables are not those of the module.
    """
    rows, shapes = kind.rows[naming](module), _shapes(module, kind.picture(module))
    leaves = flatten_dict(dict(variables), sep="/")
    for path in sorted(shapes.keys() - leaves.keys()):
        raise UsageError(f"the variables lack {path!r}, which the module has{nearest(path, leaves)}")
    for path in sorted(leaves.keys() - shapes.keys()):
        raise UsageError(f"the variables have {path!r}, which the module lacks{nearest(path, shapes)}")
    for row in rows:
        if leaves[row.ours].shape != shapes[row.ours]:
            raise wrong_shape(row.ours, leaves[row.ours].shape, shapes[row.ours])

        def make(row: Row = row) -> np.ndarray:
            array = np.asarray(leaves[row.ours])
            check_finite(row.theirs, array)
            return array if row.axes is None else np.ascontiguousarray(array.transpose(np.argsort(row.axes)))

        yield row.theirs, _theirs(row, shapes[row.ours]), np.dtype(leaves[row.ours].dtype), make


def _theirs(row: Row, shape: Shape) -> Shape:
    """The shape of their tensor from ours."""
    return shape if row.axes is None else tuple(shape[axis] for axis in np.argsort(row.axes))


@functools.lru_cache(maxsize=16)
def _shapes(module: nn.Module, picture: tuple[int, int, int]) -> dict[str, Shape]:
    """Path -> shape of the variables for pictures of "height width channels"; nothing is allocated."""
    pictures = jax.ShapeDtypeStruct((1, *picture), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), pictures)
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}
