"""Tensors of a checkpoint <-> variables of a module, by the rows of its checkpoint type.

Their tensors are named by layer; ours lie on a leading axis over the layers where a module scans them. Each tensor is
used, known to repeat another one or to be no parameter, missing, left over, or of the wrong shape.
"""

import functools
import itertools
import re
from collections.abc import Collection, Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from arch_jax.errors import UsageError, nearest
from arch_jax.interop.checkpoint_type import CheckpointType
from arch_jax.interop.parts import Part, parts_of
from arch_jax.interop.row import FixedTensor, Naming, Shape, Tensors
from arch_jax.interop.strict_json import shown
from arch_jax.interop.tensors import check_finite, read_tensor, wrong_shape

#: What PyTorch's wrappers put into names: compiled modules, sharded ones, ones whose activations are recomputed.
_INNER_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
#: The most parts, between dots, of a prefix that wrappers put before all names.
_MOST_PARTS = 4
#: The most tensors that a message names.
_MOST_NAMED = 8
#: How far a stored table may be from the one computed here: sines of angles up to some tens, in float32 or less.
_ROUNDING = {"bfloat16": 2e-2, "float16": 2e-3}


def fitted_to_checkpoint(kind: CheckpointType, tensors: Tensors, module: nn.Module) -> tuple[nn.Module, Tensors]:
    """The module with the heads that a checkpoint turns out to have, and the tensors under their present names.

    What wrappers put before or into all names (`module.`, `base_model.model.`, `_orig_mod.`) is left out.

    Raises:
      UsageError: two tensors have the same present name.
    """
    unwrapped = {name: _INNER_WRAPPERS.sub("", name) for name in tensors}
    outer = _wrapper([naming(module) for naming in kind.namings.values()], unwrapped.values())
    renamed: dict[str, Any] = {}
    for name, tensor in tensors.items():
        now = kind.renamed(unwrapped[name].removeprefix(outer))
        if now in renamed:
            raise UsageError(f"the checkpoint has the tensor {shown(now)} under two names; expected one")
        renamed[now] = tensor
    return kind.adjusted(module, renamed), renamed


def _wrapper(namings: list[Naming], names: Collection[str]) -> str:
    """The prefix of all names without which more of them are known; "" where there is none."""
    shared = lambda names: max(naming.shared({*names}) for naming in namings)
    parts = min(names, default="").split(".")[:_MOST_PARTS]
    before = itertools.accumulate(f"{part}." for part in parts)
    common = [start for start in before if all(name.startswith(start) for name in names)]
    return max(["", *common], key=lambda start: shared(name.removeprefix(start) for name in names))


def naming_of(kind: CheckpointType, module: nn.Module, tensors: Tensors) -> str:
    """The version whose naming a checkpoint follows: the one that it shares most names with."""
    return max(kind.namings, key=lambda naming: kind.namings[naming](module).shared(tensors))


def variables_of(kind: CheckpointType, tensors: Tensors, module: nn.Module) -> dict[str, Any]:
    """Variables of `module`, in its parameter dtype, from the tensors of a checkpoint.

    All names and shapes are checked before any number is read. One tensor is read at a time, and the layers of one
    parameter are collected at a time.

    Args:
      kind: a type of the module's class.
      tensors: by the library's names, as `fitted` returns them.
      module: what they are the weights of.

    Raises:
      UsageError: a tensor is missing, unknown or of another shape, its numbers don't fit the parameter dtype, or they
        are not those of a table that is computed here.
      RunError: a tensor holds NaN or infinity, or can't be read.
    """
    naming = naming_of(kind, module, tensors)
    names = kind.namings[naming](module)
    said = _said(module)
    _check_layers(names, tensors, said)
    for name, shape in names.sizes.items():
        for spelling in (*names.spellings(name), *names.twins(name)):
            if spelling in tensors and tuple(tensors[spelling].shape) != shape:
                raise wrong_shape(spelling, tensors[spelling].shape, shape)
    parts = parts_of(kind, module, naming)
    found = _found(names, parts, tensors, said)
    dtype = np.dtype(module.parameter_dtype)
    variables: dict[str, Any] = {}
    for part in parts:
        variables |= _read(part, tensors, found, module, dtype)
    return unflatten_dict(variables, sep="/")


def tensors_of(
    kind: CheckpointType, module: nn.Module, variables: Any, naming: str | None = None
) -> Iterator[tuple[str, Shape, np.dtype, Any]]:
    """The tensors of a checkpoint from the variables of `module`: name, shape, dtype, and a function that makes it.

    Names and shapes are checked at the first step; each array is made when its function is called.

    Args:
      kind: a type of the module's class.
      module: what the variables are of.
      variables: its variables.
      naming: one of the type's; None for the first.

    Raises:
      UsageError: the variables are not those of the module.
    """
    parts = parts_of(kind, module, naming)
    leaves = flatten_dict(dict(variables), sep="/")
    _check_variables(parts, module, leaves)
    for part in parts:
        for layer in part.layers:
            if part.row.fixed is not None:
                dtype = np.dtype(next(iter(leaves.values())).dtype)
                make = lambda fixed=part.row.fixed, dtype=dtype: fixed.make().astype(dtype)
                yield part.theirs(layer), part.shape, dtype, make
                continue
            paths = part.paths(module, layer)
            row = layer // part.stack.pattern if part.stack is not None and part.stack.scanned(module) else None
            make = functools.partial(_joined, part, layer, [leaves[path] for path in paths], row)
            yield part.theirs(layer), part.shape, np.dtype(leaves[paths[0]].dtype), make


def _joined(part: Part, layer: int, leaves: list[Any], row: int | None) -> np.ndarray:
    """The tensor of a part of a layer from our arrays, of which a stack of layers has a row for each."""
    tensor = part.join([np.asarray(leaf if row is None else leaf[row]) for leaf in leaves])
    check_finite(part.theirs(layer), tensor)
    return np.ascontiguousarray(tensor)


def _check_variables(parts: list[Part], module: Any, leaves: dict[str, Any]) -> None:
    """Refuses variables that the module lacks, or has and are not there, or have another shape."""
    expected = {}
    for part in parts:
        scanned = part.stack is not None and part.stack.scanned(module)
        stacked = (part.stack.depth // part.stack.pattern,) if scanned else ()
        for layer in part.layers:
            expected |= {path: stacked + shape for path, shape in zip(part.paths(module, layer), part.shapes)}
    short = lambda paths: [path.removeprefix("params/") for path in paths]
    for path in short(sorted(expected.keys() - leaves.keys())):
        raise UsageError(f"the variables lack {path!r}, which the module has{nearest(path, short(leaves))}")
    for path in short(sorted(leaves.keys() - expected.keys())):
        raise UsageError(f"the variables have {path!r}, which the module lacks{nearest(path, short(expected))}")
    for path, shape in expected.items():
        if leaves[path].shape != shape:
            raise wrong_shape(*short([path]), leaves[path].shape, shape)
        if not jnp.issubdtype(leaves[path].dtype, jnp.floating):
            name = short([path])[0]
            raise UsageError(f"the parameter {name!r} has dtype {leaves[path].dtype}; expected float32 or such")


def _said(module: Any) -> str:
    """The class that config.json names, as messages add it."""
    named = None if module.facts is None else module.facts.settings.get("architectures")
    return f" (config.json calls it {shown(named[0])})" if isinstance(named, list) and named else ""


def _instead(names: Naming, tensors: Tensors, said: str) -> str:
    """A tensor that is there where a whole stack is missing, and what the file may be, as the message adds them."""
    known = sorted(name for name in tensors if not names.buffers.fullmatch(name))
    return f"; it has {shown(known[0])}{said}" if known else said


def _check_layers(names: Naming, tensors: Tensors, said: str) -> None:
    """Refuses another number of layers than the module has; without it, a depth of 10^9 would be looked through."""
    for stack in names.stacks:
        pattern = names.layer(stack)
        layers = {match[1] for name in tensors if (match := pattern.match(name))}
        if len(layers) != stack.depth:
            of = "" if len(names.stacks) == 1 else f" of the {stack.ours}"
            raise UsageError(
                f"the checkpoint has tensors of {len(layers)} layers{of}; expected {stack.depth}, the depth"
                + ("" if layers else _instead(names, tensors, said))
            )


def _found(names: Naming, parts: list[Part], tensors: Tensors, said: str) -> dict[str, str]:
    """Full name -> name in the checkpoint, once none is missing, unknown or of another shape."""
    found: dict[str, str] = {}
    # A tied tensor may be stored under the name of any of those that are it.
    apart = {part.theirs(layer) for part in parts for layer in part.layers}
    twins = lambda full: names.twins(full, apart)
    spare = {name for name in tensors if not names.buffers.fullmatch(name)}
    for part in parts:
        for layer in part.layers:
            full = part.theirs(layer)
            name = next((name for name in (*names.spellings(full), *twins(full)) if name in tensors), None)
            if name is None:
                near = nearest(full, spare or tensors)
                raise UsageError(f"the tensor {full!r} is missing from the checkpoint{near}{said}")
            if not part.fits(tuple(tensors[name].shape)):
                raise wrong_shape(name, tensors[name].shape, part.shape)
            found[full] = name
            spare.discard(name)
    copies = {name: full for name, full in names.copies.items() for name in names.spellings(name) if name in spare}
    spare -= copies.keys()
    if spare:
        name = min(spare)
        listed = ", ".join(repr(one[:80]) for one in sorted(spare)[:_MOST_NAMED]) + "," * (len(spare) == 1)
        raise UsageError(
            f"the checkpoint has the tensor {shown(name)}, which the module lacks{nearest(name[:80], found)}; if "
            f"what is left over is not needed, load_pretrained(..., ignore=({listed})) leaves it out{said}"
        )
    for name, full in copies.items():
        _check_copy(tensors, name, found.get(full))
    return found


def _check_copy(tensors: Tensors, copy: str, name: str | None) -> None:
    """Refuses a tensor that should repeat another one and differs."""
    same = name is not None and tuple(tensors[copy].shape) == tuple(tensors[name].shape)
    if not (same and np.array_equal(np.asarray(tensors[copy]), np.asarray(tensors[name]))):
        raise UsageError(
            f"the output layer is tied to the embedding, but {copy!r} differs from {name!r}; "
            "expected equal tensors, or tie_word_embeddings false in config.json"
        )


def _check_fixed(name: str, array: np.ndarray, fixed: FixedTensor) -> None:
    """Refuses other numbers than those that are computed here, but for the rounding of the dtype they came in."""
    table = fixed.make().astype(array.dtype)
    off = float(np.abs(np.asarray(array, np.float64) - np.asarray(table, np.float64)).max())
    if off > _ROUNDING.get(array.dtype.name, 1e-4):
        raise UsageError(
            f"the tensor {name!r} is up to {off:.2g} from the table that the architecture fixes; expected that table"
        )


def _read(part: Part, tensors: Tensors, found: dict[str, str], module: Any, dtype: np.dtype) -> dict[str, Any]:
    """The variables of one part, by path."""
    arrays: dict[str, np.ndarray] = {}
    for layer in part.layers:
        name = found[part.theirs(layer)]
        cast = read_tensor(name, tensors[name], dtype)
        if part.row.fixed is not None:
            _check_fixed(name, cast, part.row.fixed)
            continue
        for path, piece in zip(part.paths(module, layer), part.split(cast)):
            if part.stack and part.stack.scanned(module):
                if path not in arrays:
                    arrays[path] = np.empty((part.stack.depth // part.stack.pattern, *piece.shape), dtype)
                arrays[path][layer // part.stack.pattern] = piece
            else:
                arrays[path] = np.ascontiguousarray(piece)
    return {path: jnp.asarray(array) for path, array in arrays.items()}
