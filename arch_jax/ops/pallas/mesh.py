"""Kernels on meshes: jit can't partition a kernel, so each device is given its own part."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from arch_jax.ops.batch_sharding import ROWS


class AmbientMesh:
    """The ambient mesh, as far as it is still to be partitioned: inside a `shard_map` nothing is.

    Attributes:
      free: names of the axes that no `shard_map` around has taken.
      alone: whether there is one device only, or every device has been given its part already.
    """

    def __init__(self) -> None:
        self._mesh = jax.sharding.get_abstract_mesh()
        kinds = zip(self._mesh.axis_names, self._mesh.axis_types)
        self.free = [name for name, kind in kinds if kind != AxisType.Manual]
        self.alone = all(self._mesh.shape[name] == 1 for name in self.free)

    def rows(self, batch: int) -> tuple[str, ...] | None:
        """The axes over which a batch of that size is sharded; None if they don't divide it."""
        names = tuple(name for name in ROWS if name in self.free and self._mesh.shape[name] > 1)
        return names if names and batch % math.prod(self._mesh.shape[name] for name in names) == 0 else None

    def tensor(self, *sizes: int) -> str | None:
        """The axis over which heads or channels are sharded; None if it doesn't divide each of their numbers."""
        over = self._mesh.shape["tensor"] if "tensor" in self.free else 1
        return "tensor" if over > 1 and all(size % over == 0 for size in sizes) else None

    def run(
        self, kernel: Callable, arrays: Sequence[Any], specs: Sequence[PartitionSpec | None], out_specs: Any
    ) -> Any:
        """`kernel(*arrays)` on each device's part; an array may be None, and is then given as None."""
        given = [(x, spec) for x, spec in zip(arrays, specs) if x is not None]

        def on_device(*parts):
            parts = iter(parts)
            return kernel(*(None if x is None else next(parts) for x in arrays))

        return jax.shard_map(
            on_device,
            in_specs=tuple(spec for _, spec in given),
            out_specs=out_specs,
            axis_names=set(self.free),
            check_vma=False,  # a kernel's output doesn't say over which axes it varies
        )(*(x for x, _ in given))
