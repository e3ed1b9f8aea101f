"""Weights of transformers' models <-> variables of ours.

Their tensors are named by layer and stored for a matrix product from the left (GPT-2: from the right, like ours); ours
are stacked over layers where layers are scanned. One table of names for each model type serves both directions.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from arch_jax.errors import UsageError, nearest
from arch_jax.interop.model_types import MODEL_TYPES
from arch_jax.interop.model_types.model_type import Layers, Names, Row, Tensors
from arch_jax.interop.strict_json import shown
from arch_jax.interop.tensors import Shape, check_finite, read_tensor, wrong_shape
from arch_jax.layers.mixers.contract import unbound
from arch_jax.layers.transformer.encoder_decoder import EncoderDecoder


class Part(NamedTuple):
    """A row as it applies to one module.

    Attributes:
      row: of the table.
      shapes: of our parameters, in the row's order; without the axis over layers.
      stack: the layers of which each has one; none for a parameter outside them.
    """

    row: Row
    shapes: tuple[Shape, ...]
    stack: Layers | None

    @property
    def shape(self) -> Shape:
        """The shape of their tensor."""
        shape = (*self.shapes[0][:-1], sum(shape[-1] for shape in self.shapes))
        shape = shape[::-1] if self.row.transposed else shape
        for axis in sorted(self.row.axes):
            shape = (*shape[:axis], 1, *shape[axis:])
        return shape

    def theirs(self, layer: int) -> str:
        """The name of their tensor."""
        return self.row.theirs.format(layer)

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """Their tensor as ours."""
        ends = np.cumsum([shape[-1] for shape in self.shapes])[:-1]
        tensor = np.squeeze(tensor, self.row.axes)
        return np.split(tensor.T if self.row.transposed else tensor, ends, axis=-1)

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Our parameters as their tensor."""
        joint = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
        joint = joint.T if self.row.transposed else joint
        return np.expand_dims(joint, self.row.axes)


@functools.lru_cache(maxsize=64)
def _shapes(module: nn.Module) -> dict[str, Shape]:
    """Path -> shape of the parameters of a module of one layer a stack."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    arguments = (tokens, tokens) if isinstance(module, EncoderDecoder) else (tokens,)
    variables = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    return {path: leaf.shape for path, leaf in flatten_dict(variables["params"], sep="/").items()}


def parts_of(kind: str, module: nn.Module) -> list[Part]:
    """The rows of the table that apply to `module`, with shapes; nothing is allocated.

    Raises:
      UsageError: the module has parameters that the model type has no names for.
    """
    # All layers are alike, so one is enough; what changes no shape is left out, so that more modules share the answer.
    names, parts = MODEL_TYPES[kind].names(module), []
    blocks = max(stack.blocks for stack in names.stacks)
    alike = {"depth": blocks, "scan": False, "remat": False, "dropout": 0.0, "dtype": jnp.float32}
    alike |= {"parameter_dtype": jnp.float32, "initial_std": 0.02}
    alike |= {"decoder_depth": None} if isinstance(module, EncoderDecoder) else {}
    shapes = dict(_shapes(unbound(module).clone(parent=None, **alike)))
    for stack, rows in ((None, names.rows), *((stack, stack.rows) for stack in names.stacks)):
        for row in rows:
            prefix = "" if stack is None else f"{stack.ours}/layer_{row.block}/"
            paths = [prefix + path for path in row.ours]
            if all(path in shapes for path in paths):
                parts.append(Part(row, tuple(shapes.pop(path) for path in paths), stack))
    if shapes:
        path = re.sub(r"layer_[0-9]+", "layer_i", next(iter(shapes)))
        raise UsageError(f"the module has the parameter {path!r}, which a {kind} checkpoint has no name for")
    return parts


def fitted(kind: str, tensors: Tensors, module: nn.Module) -> tuple[nn.Module, Tensors]:
    """The module with the heads that a checkpoint turns out to have, and the tensors under their present names.

    Raises:
      UsageError: two tensors have the same present name.
    """
    model_type, renamed = MODEL_TYPES[kind], {}
    for name, tensor in tensors.items():
        now = model_type.renamed(name)
        if now in renamed:
            raise UsageError(f"the checkpoint has the tensor {shown(now)} under two names; expected one")
        renamed[now] = tensor
    return model_type.adjusted(module, renamed), renamed


def variables_of(kind: str, tensors: Tensors, module: nn.Module) -> dict[str, Any]:
    """Variables of `module`, in its parameter dtype, from the tensors of a checkpoint.

    All names and shapes are checked before any number is read. One tensor is read at a time, and the layers of one
    parameter are collected at a time.

    Args:
      kind: a model type, such as "gpt2".
      tensors: by transformers' names, as `fitted` returns them.
      module: what they are the weights of.

    Raises:
      UsageError: a tensor is missing, unknown or of another shape, or its numbers don't fit the parameter dtype.
      RunError: a tensor holds NaN or infinity, or can't be read.
    """
    names = MODEL_TYPES[kind].names(module)
    _check_layers(names, tensors)
    embedding = next((n for n in _spellings(names, names.embedding) if n in tensors), None)
    expected = (module.vocabulary, module.width)
    if embedding and tuple(tensors[embedding].shape) != expected:  # first: it bounds the sizes that shapes come of
        raise wrong_shape(embedding, tensors[embedding].shape, expected)
    parts = parts_of(kind, module)
    found = _found(names, parts, tensors)
    dtype = np.dtype(module.parameter_dtype)
    params: dict[str, Any] = {}
    for part in parts:
        params |= _read(part, tensors, found, module, dtype)
    return {"params": unflatten_dict(params, sep="/")}


def tensors_of(kind: str, module: nn.Module, variables: Any) -> Iterator[tuple[str, Shape, np.dtype, Any]]:
    """The tensors of a checkpoint from the variables of `module`: name, shape, dtype, and a function that makes it.

    Names and shapes are checked at the first step; each array is made when its function is called.

    Raises:
      UsageError: the variables are not those of the module.
    """
    parts = parts_of(kind, module)
    leaves = flatten_dict(variables.get("params", {}), sep="/")
    expected = {path for part in parts for layer in _layers(part) for path in _paths(part, module, layer)}
    for path in sorted(expected - leaves.keys()):
        raise UsageError(f"the variables lack {path!r}, which the module has{nearest(path, leaves)}")
    for path in sorted(leaves.keys() - expected):
        raise UsageError(f"the variables have {path!r}, which the module lacks{nearest(path, expected)}")
    for part in parts:
        for layer in _layers(part):
            paths = _paths(part, module, layer)
            stacked = (part.stack.depth,) if part.stack and module.scan else ()
            for path, shape in zip(paths, part.shapes):
                if leaves[path].shape != stacked + shape:
                    raise wrong_shape(path, leaves[path].shape, stacked + shape)
                if not jnp.issubdtype(leaves[path].dtype, jnp.floating):
                    raise UsageError(f"the parameter {path!r} has dtype {leaves[path].dtype}; expected float32 or such")

            def make(part=part, layer=layer, paths=paths, stacked=stacked) -> np.ndarray:
                arrays = [np.asarray(leaves[path][layer] if stacked else leaves[path]) for path in paths]
                tensor = part.join(arrays)
                check_finite(part.theirs(layer), tensor)
                return tensor

            yield part.theirs(layer), part.shape, np.dtype(leaves[paths[0]].dtype), make


def _layers(part: Part) -> range:
    return range(1 if part.stack is None else part.stack.depth)


def _paths(part: Part, module: Any, layer: int) -> list[str]:
    """Where the parameters of a part lie, as `Stack` keeps them: on a leading axis where it scans, else apart."""
    if part.stack is None:
        return list(part.row.ours)
    block = part.row.block
    place = f"layers/block_{block}" if module.scan else f"layer_{layer * part.stack.blocks + block}"
    return [f"{part.stack.ours}/{place}/{path}" for path in part.row.ours]


def _spellings(names: Names, name: str) -> tuple[str, ...]:
    return (name, name.removeprefix(names.prefix)) if name.startswith(names.prefix) else (name,)


def _check_layers(names: Names, tensors: Tensors) -> None:
    """That the checkpoint has as many layers as the module; without it, a depth of 10^9 would be looked through."""
    for stack in names.stacks:
        layers = {match[1] for name in tensors if (match := stack.pattern.match(name))}
        if len(layers) != stack.depth:
            of = "" if len(names.stacks) == 1 else f" of the {stack.ours}"
            raise UsageError(
                f"the checkpoint has tensors of {len(layers)} layers{of}; expected {stack.depth}, the depth"
            )


def _found(names: Names, parts: list[Part], tensors: Tensors) -> dict[str, str]:
    """Full name -> name in the checkpoint, once none is missing, unknown or of another shape."""
    found = {}
    spare = {name for name in tensors if not names.buffers.fullmatch(name)}
    for part in parts:
        for layer in _layers(part):
            full = part.theirs(layer)
            name = next((name for name in _spellings(names, full) if name in tensors), None)
            if name is None:
                raise UsageError(f"the tensor {full!r} is missing from the checkpoint")
            if tuple(tensors[name].shape) != part.shape:
                raise wrong_shape(name, tensors[name].shape, part.shape)
            found[full] = name
            spare.discard(name)
    copies = {name: full for name, full in names.copies.items() for name in _spellings(names, name) if name in spare}
    spare -= copies.keys()
    if spare:
        name = min(spare)
        raise UsageError(
            f"the checkpoint has the tensor {shown(name)}, which the module lacks{nearest(name[:80], found)}"
        )
    for name, full in copies.items():
        _check_copy(tensors, name, found.get(full))
    return found


def _check_copy(tensors: Tensors, copy: str, name: str | None) -> None:
    """That a tensor which repeats another one does so."""
    same = name is not None and tuple(tensors[copy].shape) == tuple(tensors[name].shape)
    if not (same and np.array_equal(np.asarray(tensors[copy]), np.asarray(tensors[name]))):
        raise UsageError(
            f"the output layer is tied to the embedding, but {copy!r} differs from {name!r}; "
            "expected equal tensors, or tie_word_embeddings false in config.json"
        )


def _read(part: Part, tensors: Tensors, found: dict[str, str], module: Any, dtype: np.dtype) -> dict[str, Any]:
    """The parameters of one part, by path."""
    arrays: dict[str, np.ndarray] = {}
    for layer in _layers(part):
        name = found[part.theirs(layer)]
        cast = read_tensor(name, tensors[name], dtype)
        for path, piece in zip(_paths(part, module, layer), part.split(cast)):
            if part.stack and module.scan:
                if path not in arrays:
                    arrays[path] = np.empty((part.stack.depth, *piece.shape), dtype)
                arrays[path][layer] = piece
            else:
                arrays[path] = np.ascontiguousarray(piece)
    return {path: jnp.asarray(array) for path, array in arrays.items()}
