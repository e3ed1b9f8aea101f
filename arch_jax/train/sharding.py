"""Sharding of a state over a mesh: path patterns declared by a family, and a rule for the rest.

A model's class may have `shardings`: ordered pairs of a regular expression, searched for in a parameter's path
("stack/layers/block_0/mixer/query/kernel"), and an axis of the mesh for each of its dimensions, None for one that stays
whole. Dimensions are counted from the right, so that scanned layers, which have one more in front, need no entry of
their own. The first pattern found counts.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from arch_jax.train.checkpointing.checksums import leaf_paths
from arch_jax.train.state import TrainState

#: A regular expression on paths, and the axis for each dimension, counted from the right.
ShardingPattern = tuple[str, tuple[str | None, ...]]


def patterns(model: Any) -> tuple[ShardingPattern, ...]:
    """The patterns that a model's class declares; empty for most."""
    return getattr(type(model), "shardings", ())


def partition(
    path: str, shape: Sequence[int], patterns: Sequence[ShardingPattern], sizes: Mapping[str, int]
) -> PartitionSpec:
    """The axes over which one parameter is cut.

    Args:
      path: of the parameter, inside the model.
      shape: of the parameter.
      patterns: in order; the first that is found in the path counts.
      sizes: axis -> devices. An axis that does not divide its dimension leaves it whole.

    Returns:
      The axis of each dimension. What matches no pattern is cut over "fsdp" in its largest dimension that this divides
      (of equal ones the last), and is whole where there is none.
    """
    axes: list[str | None] = [None] * len(shape)
    found = next((names for pattern, names in patterns if re.search(pattern, path)), None)
    if found is not None:
        for i, name in enumerate(reversed(found), start=1):
            if i <= len(shape) and name is not None and sizes[name] > 1 and shape[-i] % sizes[name] == 0:
                axes[-i] = name
    elif sizes["fsdp"] > 1:
        fits = [(length, i) for i, length in enumerate(shape) if length and length % sizes["fsdp"] == 0]
        if fits:
            axes[max(fits)[1]] = "fsdp"
    return PartitionSpec(*axes)


def state_shardings(state: TrainState, mesh: Mesh, patterns: Sequence[ShardingPattern]) -> TrainState:
    """A sharding for each leaf of a state.

    What mirrors a parameter (moments of the optimizer, the moving average) is cut as that is: its path ends with the
    parameter's, and its shape is the same. Everything else is on every device.

    Args:
      state: shapes of the state.
      mesh: with the axes of `Experiment.mesh`.
      patterns: of the model.
    """
    sizes = dict(mesh.shape)
    shapes = {name: leaf_paths(tree)[0] for name, tree in state.parameters.items()}
    specs = {
        player: {path: partition(path, leaf.shape, patterns, sizes) for path, leaf in leaves.items()}
        for player, leaves in shapes.items()
    }

    def of(place: tuple, leaf: Any) -> NamedSharding:
        parts = jax.tree_util.keystr(place, simple=True, separator="/").split("/")
        if parts[0] in ("parameters", "optimizer", "average"):
            player = parts[1]
            for i in range(2, len(parts)):
                path = "/".join(parts[i:])
                if path in specs.get(player, ()) and shapes[player][path].shape == leaf.shape:
                    return NamedSharding(mesh, specs[player][path])
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(of, state)
