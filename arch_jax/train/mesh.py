"""Placement of arrays: one device, a mesh of several under `jit`, or replicas under `pmap`.

All three run the same program and give the same losses. Under `jit` that includes random values, since
sampling over the mesh gives the values of one device; `pmap` folds each device's index into the key, so that with
dropout only expectations agree.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from arch_jax.errors import UsageError
from arch_jax.experiment import Experiment
from arch_jax.ops.batch_sharding import ROWS
from arch_jax.protocols import batch_size
from arch_jax.train.distributed import on_host
from arch_jax.train.sharding import patterns, state_shardings
from arch_jax.train.step import make_program


class Placement:
    """The layout of a run's state and batches on the devices, and the compiled program for it.

    Args:
      experiment: determines `parallel` and `mesh`.
      devices: the devices; all by default, of all processes.
      full_batch: every batch is the same one, of all the data; it is placed once.

    Raises:
      UsageError: the mesh can't be laid over the devices, or the batch can't be divided among them.
    """

    def __init__(self, experiment: Experiment, devices: list | None = None, full_batch: bool = False) -> None:
        available = jax.devices() if devices is None else devices
        sizes = experiment.mesh.sizes(len(available))
        self.devices = available[: int(np.prod(list(sizes.values())))]
        self.full_batch = full_batch
        self.mapped = experiment.parallel == "pmap"
        self.several = jax.process_count() > 1
        self.single = len(self.devices) == 1 and not self.mapped
        self._check(experiment, sizes, len(available))
        self.numbers = experiment.numbers
        self._compiling: Future | None = None
        self._placed: Any = None  # the batch of `full_batch`
        self.shardings: Any = None  # of the state's leaves, on a mesh
        self._make(experiment, sizes)

    def _check(self, experiment: Experiment, sizes: dict[str, int], available: int) -> None:
        parts = sizes["data"] * sizes["fsdp"]
        batch = batch_size(experiment.data)
        if self.full_batch:
            kind = type(experiment.data).__name__
            if self.mapped:
                raise UsageError(f"parallel=pmap cuts batches, and the data {kind} has only one; expected parallel=jit")
            if experiment.accumulate > 1:
                raise UsageError(
                    f"accumulate is {experiment.accumulate}, and the data {kind} has only one batch, which can't be "
                    "cut; expected accumulate=1"
                )
        elif batch is not None and (batch // experiment.accumulate) % parts:
            whom = "devices" if parts == len(self.devices) else "parts of mesh.data x mesh.fsdp"
            pieces = "" if experiment.accumulate == 1 else f" in {experiment.accumulate} micro-batches"
            raise UsageError(
                f"data.batch {batch}{pieces} can't be divided among {parts} {whom}; "
                f"{self._instead(experiment, sizes, available)}"
            )
        processes = jax.process_count()
        if processes > 1:
            if self.mapped:
                raise UsageError(f"parallel=pmap is for one process, and there are {processes}; expected parallel=jit")
            if len(self.devices) < available:
                raise UsageError(
                    f"the mesh has {len(self.devices)} devices, and the {processes} processes have {available}; "
                    "expected all of them, as with mesh.data=none"
                )
            if parts % processes and not self.full_batch:
                raise UsageError(
                    f"mesh.data x mesh.fsdp is {parts}, which the {processes} processes can't share, since each reads "
                    f"its own rows; the nearest is mesh.data={processes}"
                )
        known = {name for _, names in patterns(experiment.model) for name in names}
        for name in ("tensor", "expert", "sequence"):
            if sizes[name] > 1 and name not in known:
                raise UsageError(
                    f"mesh.{name} is {sizes[name]}, and nothing of the model {type(experiment.model).__name__} is cut "
                    f"over {name!r}; expected mesh.{name}=1"
                )

    @staticmethod
    def _instead(experiment: Experiment, sizes: dict[str, int], available: int) -> str:
        """The nearest mesh that divides the batch, which a resumed run can be given too, and the nearest batch.

        The batch is a smaller one where there is any: no data is too small for that.
        """
        batch = batch_size(experiment.data)
        rows, even = batch // experiment.accumulate, sizes["data"] * sizes["fsdp"] * experiment.accumulate
        said = f"expected data.batch={max(1, batch // even) * even}"
        # Several processes take all devices, and so does a mesh whose other axes don't divide the batch.
        others = int(np.prod([size for name, size in sizes.items() if name != "data"]))
        fits = [
            data
            for data in range(1, sizes["data"])
            if available % (data * others) == 0 and rows % (data * sizes["fsdp"]) == 0
        ]
        return f"{said}, or mesh.data={fits[-1]}" if fits and jax.process_count() == 1 else said

    def _make(self, experiment: Experiment, sizes: dict[str, int]) -> None:
        record = experiment.steps_per_dispatch if self.full_batch else None
        if self.mapped:
            program = make_program(experiment, axis="device")
            self._program: Callable = jax.pmap(
                program, "device", in_axes=(0, 0, None, None), donate_argnums=0, devices=self.devices
            )
            return
        program = make_program(experiment, record=record)
        if self.single:
            self._program = jax.jit(program, donate_argnums=0)
            return
        self._patterns, self._untraced = patterns(experiment.model), program
        if self.several:
            # By process, so that the rows which each one reads, one below the other, are the batch of a single process.
            devices = np.array(sorted(self.devices, key=lambda one: (one.process_index, one.id)))
            self.mesh = Mesh(devices.reshape(tuple(sizes.values())), tuple(sizes), axis_types=self._kinds(sizes))
        else:
            self.mesh = jax.make_mesh(
                tuple(sizes.values()), tuple(sizes), axis_types=self._kinds(sizes), devices=self.devices
            )
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())
        self._rows = NamedSharding(self.mesh, PartitionSpec(None, ROWS))

    @staticmethod
    def _kinds(sizes: dict[str, int]) -> tuple[AxisType, ...]:
        return (AxisType.Auto,) * len(sizes)

    def laid(self, shapes: Any) -> Any:
        """The shapes of a state with the sharding of each leaf, for restoring it; on a mesh, also fixes the program.

        Args:
          shapes: as `jax.eval_shape` gives them.
        """
        if self.single or self.mapped:
            return shapes
        if self.shardings is None:
            self.shardings = state_shardings(shapes, self.mesh, self._patterns)
            self._program = jax.jit(
                self._untraced,
                in_shardings=(self.shardings, None, None, None),
                out_shardings=(self.shardings, self._everywhere),
                donate_argnums=0,
            )
        give = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at, weak_type=x.weak_type)
        return jax.tree.map(give, shapes, self.shardings)

    def compile_ahead(self, state: Any, batch: Any, size: int) -> None:
        """Starts to compile in the background, from shapes alone, while the state is made and the data opened.

        Args:
          state: shapes and dtypes of the state.
          batch: shapes and dtypes of one batch.
          size: batches stacked for a dispatch.
        """
        if self.single:
            size = 1 if self.full_batch else size
            stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), batch)
            compiled = lambda: self._program.lower(state, stacked, np.int32(0), self.numbers).compile()
            self._compiling = ThreadPoolExecutor(1).submit(compiled)

    @property
    def compiled(self) -> Any:
        """The program that `compile_ahead` started to compile, once it is done; None if it is compiled at its call."""
        return None if self._compiling is None else self._compiling.result()

    def fresh(self, make: Callable, batch: Any, *arguments: Any) -> Any:
        """A new state, made where it lives: no device ever holds all of a sharded one.

        Args:
          make: (batch, *arguments) -> state; called again with the same function, it is not compiled again.
          batch: shapes and dtypes of one batch; the state depends on nothing else of it.
          *arguments: other numbers that it depends on, such as a seed.
        """
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch)
        if self.single or self.mapped:
            return jax.jit(make)(zeros, *arguments)
        self.laid(jax.eval_shape(make, batch, *arguments))
        return jax.jit(make, out_shardings=self.shardings)(zeros, *arguments)

    def place(self, state: Any) -> Any:
        """A state on the devices in the program's layout."""
        if self.single:
            return state
        if self.mapped:
            copies = jax.tree.map(lambda x: jax.numpy.stack([x] * len(self.devices)), state)
            mesh = jax.make_mesh((len(self.devices),), ("device",), axis_types=(AxisType.Auto,), devices=self.devices)
            return jax.device_put(copies, NamedSharding(mesh, PartitionSpec("device")))
        self.laid(jax.eval_shape(lambda x: x, state))
        return state if self.several else jax.device_put(state, self.shardings)

    def everywhere(self, tree: Any) -> Any:
        """Arrays of the host as they stand in a state that `place` takes: on every device, each process having all."""
        if not self.several:
            return jax.tree.map(lambda x: jax.numpy.array(x, copy=True), tree)
        put = lambda x: jax.make_array_from_callback(x.shape, self._everywhere, lambda index: x[index])
        return jax.tree.map(lambda x: put(np.asarray(x)), tree)

    def whole(self, state: Any) -> Any:
        """The state as it is saved and evaluated: one copy."""
        return jax.tree.map(lambda x: x[0], state) if self.mapped else state

    def shown(self, variables: Any) -> Any:
        """Variables for work that one process does alone, such as sampling: on a mesh, all of each on the host."""
        return variables if self.single or self.mapped else on_host(variables)

    def stack(self, batches: list[Any], size: int) -> Any:
        """Batches of one dispatch on a leading axis, padded to `size` with the last one (those are not trained on).

        With several processes each gives its own rows. A full batch stands alone on that axis, and is placed once.
        """
        if self.full_batch:
            if self._placed is None:
                self._placed = self._spread(jax.tree.map(lambda x: np.asarray(x)[None], batches[0]), 1)
            return self._placed
        padded = batches + [batches[-1]] * (size - len(batches))
        stacked = jax.tree.map(lambda *x: np.stack(x), *padded)
        if self.single:
            return stacked
        if self.mapped:  # "device step batch ...": each device gets its rows of every batch
            count = len(self.devices)
            split = lambda x: np.moveaxis(x.reshape(x.shape[0], count, x.shape[1] // count, *x.shape[2:]), 1, 0)
            return jax.tree.map(split, stacked)
        if self.several:
            return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._rows, x), stacked)
        return jax.device_put(stacked, self._rows)

    def spread(self, batch: Any) -> Any:
        """A batch that every process has as a whole, such as one of validation: sharded by rows if possible."""
        return batch if self.single or self.mapped else self._spread(batch, 0)

    def _spread(self, batch: Any, axis: int) -> Any:
        """Arrays that are whole in every process, on the devices; sharded along an axis if it divides."""
        if self.single:
            return jax.device_put(batch)
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]

        def put(x: Any) -> jax.Array:
            x = np.asarray(x)
            cut = x.ndim > axis and x.shape[axis] and x.shape[axis] % parts == 0
            spec = PartitionSpec(*(None,) * axis, ROWS) if cut else PartitionSpec()
            return jax.make_array_from_callback(x.shape, NamedSharding(self.mesh, spec), lambda index: x[index])

        return jax.tree.map(put, batch)

    def run(self, state: Any, batches: Any, count: int, numbers: Any = None) -> tuple[Any, Any]:
        """Takes `count` steps. The given state is donated.

        Args:
          state: as `place` gave it.
          batches: as `stack` gave them.
          count: at most as many steps as were stacked.
          numbers: of the experiment, if it differs in them from the one this was made for.
        """
        numbers = self.numbers if numbers is None else numbers
        program = self.compiled or self._program
        if self.single or self.mapped:
            state, metrics = program(state, batches, np.int32(count), numbers)
            return state, jax.tree.map(lambda x: x[0], metrics) if self.mapped else metrics
        with jax.set_mesh(self.mesh):  # for ops that take their axes from it
            return program(state, batches, np.int32(count), numbers)
