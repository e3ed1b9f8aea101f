"""The rows of a checkpoint type as they apply to one module: shapes of tensors, and numbers between the two layouts."""

import functools
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType
from arch_jax.interop.row import LayerRows, Row, Shape
from arch_jax.layers.mixers.contract import unbound


class Part(NamedTuple):
    """A row as it applies to one module.

    Attributes:
      row: of the naming.
      shapes: of our variables, in the row's order; without the axis over layers.
      stack: the layers of which each has one; None for a tensor outside them.
    """

    row: Row
    shapes: tuple[Shape, ...]
    stack: LayerRows | None

    @property
    def _bare(self) -> Shape:
        """The shape of their tensor without the axes of 1 that ours lacks."""
        shape = (*self.shapes[0][:-1], sum(shape[-1] for shape in self.shapes))
        if self.row.patch is not None:
            shape = (self.row.patch, self.row.patch, shape[0] // self.row.patch**2, shape[1])
        return shape if self.row.axes is None else tuple(shape[axis] for axis in np.argsort(self.row.axes))

    @property
    def shape(self) -> Shape:
        """The shape of their tensor."""
        if self.row.fixed is not None:
            return self.row.fixed.shape
        shape = self._bare
        for axis in self.row.ones:
            shape = (*shape[:axis], 1, *shape[axis:])
        return shape

    @property
    def layers(self) -> range:
        """The numbers of the layers that have one."""
        return range(1 if self.stack is None else self.stack.depth)

    def theirs(self, layer: int) -> str:
        """The name of their tensor."""
        return self.row.theirs.format(layer)

    def fits(self, shape: Shape) -> bool:
        """True where their tensor may have a shape."""
        return shape == self.shape or (self.row.window and shape == (*self.shape, 1, 1))

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """Their tensor as ours."""
        tensor = tensor.reshape(self._bare)
        tensor = tensor if self.row.axes is None else tensor.transpose(self.row.axes)
        tensor = tensor if self.row.patch is None else tensor.reshape(-1, tensor.shape[-1])
        return np.split(tensor, np.cumsum([shape[-1] for shape in self.shapes])[:-1], axis=-1)

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Our variables as their tensor."""
        joint = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
        if self.row.patch is not None:
            joint = joint.reshape(self.row.patch, self.row.patch, -1, joint.shape[-1])
        joint = joint if self.row.axes is None else joint.transpose(np.argsort(self.row.axes))
        return joint.reshape(self.shape)

    def paths(self, module: Any, layer: int) -> list[str]:
        """Our variables, as `Stack` keeps them: on a leading axis where it scans, else apart."""
        scanned = self.stack is not None and self.stack.scanned(module)
        place = "" if self.stack is None else self.stack.place(layer, self.row.block, scanned)
        return [f"{self.row.collection}/{place}{path}" for path in self.row.ours]


@functools.lru_cache(maxsize=64)
def _shapes(module: nn.Module, inputs: tuple) -> dict[str, Shape]:
    """Path -> shape of a module's variables; nothing is allocated."""
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}


def _one_layer(module: Any, stacks: tuple[LayerRows, ...]) -> Any:
    """The module with one layer a stack: all are alike. What changes no shape is left out, so that more are equal."""
    if not stacks:
        return module
    alike = {"depth": max(stack.blocks for stack in stacks), "decoder_depth": 1, "scan": False, "remat": False}
    alike |= {"dropout": 0.0, "dtype": jnp.float32, "parameter_dtype": jnp.float32, "initial_std": 0.02}
    alike = {name: value for name, value in alike.items() if hasattr(module, name)}
    return unbound(module).clone(parent=None, **alike)


def _shown(path: str) -> str:
    """A path as messages show it: parameters without their collection."""
    return re.sub(r"layer_[0-9]+", "layer_i", path.removeprefix("params/"))


def parts_of(kind: CheckpointType, module: nn.Module, naming: str | None = None) -> list[Part]:
    """The rows that apply to `module`, with shapes; nothing is allocated.

    Args:
      kind: a type of the module's class.
      module: whose variables are mapped.
      naming: one of the type's; None for the first.

    Raises:
      UsageError: the module has variables that the type has no names for.
    """
    names, parts = kind.namings[naming or next(iter(kind.namings))](module), []
    shapes = dict(_shapes(_one_layer(module, names.stacks), kind.inputs(module)))
    for stack, rows in ((None, names.rows), *((stack, stack.rows) for stack in names.stacks)):
        for row in rows:
            place = "" if stack is None else f"{stack.ours}/layer_{row.block}/"
            paths = [f"{row.collection}/{place}{path}" for path in row.ours]
            if all(path in shapes for path in paths):
                parts.append(Part(row, tuple(shapes.pop(path) for path in paths), stack))
    if shapes:
        path = _shown(next(iter(shapes)))
        raise UsageError(f"the module has the parameter {path!r}, which a {kind.name} checkpoint has no name for")
    return parts
