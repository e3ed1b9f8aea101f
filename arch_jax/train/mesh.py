"""Where arrays live: one device, a mesh of all of them under `jit`, or copies under `pmap`.

All three run the same program and give the same losses, as far as the objective draws nothing at random: with dropout,
`pmap` folds each device's index into the key and only expectations agree.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from arch_jax.errors import UsageError
from arch_jax.experiment import Experiment
from arch_jax.train.step import make_program

#: The axes that a step may be spread over. Sizes default to 1 but `data`, which takes all devices.
AXES = ("data", "fsdp", "tensor", "expert", "sequence")


class Placement:
    """How the state and the batches of a run are laid on the devices, and the compiled program for it.

    Args:
      experiment: settles `parallel`.
      devices: what to use; all by default.

    Raises:
      UsageError: the batch can't be divided among the devices.
    """

    def __init__(self, experiment: Experiment, devices: list | None = None) -> None:
        self.devices = jax.devices() if devices is None else devices
        count = len(self.devices)
        batch = getattr(experiment.data, "batch", None)
        rows = None if batch is None else batch // experiment.accumulate
        if count > 1 and rows is not None and rows % count:
            raise UsageError(
                f"data.batch {batch} in {experiment.accumulate} micro-batches can't be divided among {count} devices; "
                f"the nearest is data.batch={max(1, round(rows / count)) * count * experiment.accumulate}"
            )
        self.mapped = experiment.parallel == "pmap"
        self.single = count == 1 and not self.mapped
        self._compiling: Future | None = None
        self._make(experiment)

    def _make(self, experiment: Experiment) -> None:
        if self.mapped:
            program = make_program(experiment, axis="device")
            self._program: Callable = jax.pmap(
                program, "device", in_axes=(0, 0, None), donate_argnums=0, devices=self.devices
            )
            return
        program = make_program(experiment)
        if self.single:
            self._program = jax.jit(program, donate_argnums=0)
            return
        sizes = (len(self.devices),) + (1,) * (len(AXES) - 1)
        kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
        self.mesh = jax.make_mesh(sizes, AXES, axis_types=kinds, devices=self.devices)
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())
        self._rows = NamedSharding(self.mesh, PartitionSpec(None, "data"))
        self._program = jax.jit(program, donate_argnums=0, out_shardings=self._everywhere)

    def compile_ahead(self, state: Any, batch: Any, size: int) -> None:
        """Begins to compile in the background, from shapes alone, while the state is made and the data opened.

        Args:
          state: shapes and dtypes of the state.
          batch: shapes and dtypes of one batch.
          size: batches stacked for a dispatch.
        """
        if self.single:
            stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), batch)
            compiled = lambda: self._program.lower(state, stacked, np.int32(0)).compile()
            self._compiling = ThreadPoolExecutor(1).submit(compiled)

    def place(self, state: Any) -> Any:
        """A state on the devices as the program wants it."""
        if self.single:
            return state
        if self.mapped:
            copies = jax.tree.map(lambda x: jax.numpy.stack([x] * len(self.devices)), state)
            mesh = jax.make_mesh(
                (len(self.devices),), ("device",), axis_types=(jax.sharding.AxisType.Auto,), devices=self.devices
            )
            return jax.device_put(copies, NamedSharding(mesh, PartitionSpec("device")))
        return jax.device_put(state, self._everywhere)

    def whole(self, state: Any) -> Any:
        """The state as it is saved and evaluated: one copy."""
        return jax.tree.map(lambda x: x[0], state) if self.mapped else state

    def stack(self, batches: list[Any], size: int) -> Any:
        """Batches of one dispatch on a leading axis, filled up to `size` with the last (those are not trained on)."""
        padded = batches + [batches[-1]] * (size - len(batches))
        stacked = jax.tree.map(lambda *x: np.stack(x), *padded)
        if self.single:
            return stacked
        if self.mapped:  # "device step batch ...": each device gets its rows of every batch
            count = len(self.devices)
            split = lambda x: np.moveaxis(x.reshape(x.shape[0], count, x.shape[1] // count, *x.shape[2:]), 1, 0)
            return jax.tree.map(split, stacked)
        return jax.device_put(stacked, self._rows)

    def run(self, state: Any, batches: Any, count: int) -> tuple[Any, Any]:
        """Takes `count` steps. The state given is used up."""
        program = self._program if self._compiling is None else self._compiling.result()
        state, metrics = program(state, batches, np.int32(count))
        return state, jax.tree.map(lambda x: x[0], metrics) if self.mapped else metrics
