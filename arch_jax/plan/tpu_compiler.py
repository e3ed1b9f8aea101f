"""Compiles train and decoding steps with the real TPU compiler, on a machine without a TPU: a program of its own.

    python -m arch_jax.plan.tpu_compiler

It reads requests from its standard input, a JSON object a line, and answers each with one on its standard output.
libtpu must be known before JAX is imported and must stay out of a process that trains on a CPU, so
`arch_jax.plan` starts this one with an environment of its own (`environment`) and keeps it for several requests.
"""

import contextlib
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from arch_jax.errors import ArchJaxError, RunError, UsageError
from arch_jax.experiment import Experiment, import_file
from arch_jax.flops import count_flops
from arch_jax.ops.platform import acting_as
from arch_jax.plan.hlo import collectives, refusal
from arch_jax.protocols import takes_state, unrolled
from arch_jax.registry import count
from arch_jax.train.given import open_given
from arch_jax.train.mesh import ROWS, Placement
from arch_jax.train.sharding import partition, patterns
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_program, make_step


def environment(accelerator: str) -> dict[str, str]:
    """The program's environment: this process's, with libtpu in reach and no TPU asked for.

    Args:
      accelerator: the machine's `TPU_ACCELERATOR_TYPE`.

    Raises:
      RunError: libtpu is neither installed nor in the folder that ARCH_JAX_LIBTPU names.
    """
    folder = os.environ.get("ARCH_JAX_LIBTPU")
    if folder is None and importlib.util.find_spec("libtpu") is None:
        raise RunError("libtpu, which holds the TPU's compiler, is not installed; pip install arch-jax[tpu] brings it")
    if folder is not None and not (Path(folder) / "libtpu").is_dir():
        raise RunError(f"ARCH_JAX_LIBTPU is {folder!r}, where there is no libtpu; expected the folder that holds it")
    paths = [folder, str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a plan says how long a compilation takes
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": accelerator,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    # Flags for another platform's compiler would be refused by this one.
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | own


def local_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes on one device, each cut as its sharding says; whole where it has none."""

    def of(x: Any) -> int:
        sharding = getattr(x, "sharding", None)
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        return int(np.prod(shape, dtype=np.int64)) * x.dtype.itemsize

    return sum(map(of, jax.tree.leaves(tree)))


#: Returns the lowered program, and what is known of it before it is compiled.
Lowering = tuple[Callable[[], Any], dict[str, Any]]


def train_step(experiment: Experiment, batch: Any, devices: list, full_batch: bool = False) -> Lowering:
    """The real train program on devices that need not be present, laid out over them as by `train`.

    Args:
      experiment: the experiment.
      batch: shapes of one batch.
      devices: of a topology.
      full_batch: every batch is the same one.

    Raises:
      UsageError: the mesh or the batch does not suit the devices.
    """
    if experiment.parallel != "jit":
        raise UsageError(f"parallel is {experiment.parallel!r}, which can't be compiled ahead; expected parallel=jit")
    placement = Placement(experiment, devices=devices, full_batch=full_batch)
    experiment, given, _ = open_given(experiment, batch)
    shapes = jax.eval_shape(lambda b, g: initial_state(experiment, b, given=g), batch, given)
    size, record = (1, experiment.steps_per_dispatch) if full_batch else (experiment.steps_per_dispatch, None)
    program = make_program(experiment, record=record)
    if placement.single:
        everywhere: Any = SingleDeviceSharding(placement.devices[0])
        state, parts, rows = _placed(shapes, everywhere), 1, everywhere
        program = jax.jit(program, donate_argnums=0)
    else:
        state = placement.laid(shapes)
        everywhere = NamedSharding(placement.mesh, PartitionSpec())
        rows = NamedSharding(placement.mesh, PartitionSpec(None, ROWS))
        parts = placement.mesh.shape["data"] * placement.mesh.shape["fsdp"]
        program = jax.jit(
            program,
            in_shardings=(placement.shardings, None, None, None),
            out_shardings=(placement.shardings, everywhere),
            donate_argnums=0,
        )

    def stacked(x: Any) -> Any:
        cut = x.shape and x.shape[0] and x.shape[0] % parts == 0
        return jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=rows if cut else everywhere)

    batches = jax.tree.map(stacked, dict(batch))
    steps = jax.ShapeDtypeStruct((), "int32", sharding=everywhere)

    def lower() -> Any:
        with contextlib.nullcontext() if placement.single else jax.set_mesh(placement.mesh):
            return program.lower(state, batches, steps, experiment.numbers)

    cost = count_flops(make_step(experiment), shapes, batch)
    return lower, {
        "flops": cost.products,
        "unbounded": cost.unbounded,
        "count": count(shapes.parameters),
        "parameters": local_bytes(state.parameters),
        "optimizer": local_bytes(state.optimizer),
        "batch": local_bytes(batches),
        "parts": parts,
    }


def decode_step(experiment: Experiment, batch: Any, devices: list, length: int) -> Lowering:
    """One decoding step of `generate`: one more token for each row, through the model's recurrent state or cache.

    Rows are sharded over all parts of the mesh that batches are cut into; parameters lie as in training.

    Args:
      experiment: whose model decodes.
      batch: shapes of one batch of training; it has the rows that are decoded together.
      devices: of a topology.
      length: tokens that the state has room for.

    Raises:
      UsageError: the model carries no state.
    """
    module = experiment.model
    if not takes_state(module):
        raise UsageError(f"the model {type(module).__name__} carries no state, so it has no decoding step to plan")
    rows = jax.tree.leaves(batch)[0].shape[0]
    variables = jax.eval_shape(lambda b: dict(experiment.task.init(jax.random.key(0), b)), batch)
    models = [module]

    def apart(variables: Any) -> Any:
        models[0], variables = unrolled(module, variables)
        return variables

    variables = jax.eval_shape(apart, variables)
    state = jax.eval_shape(lambda: models[0].initial_state(rows, length))
    placement = Placement(experiment, devices=devices)
    if placement.single:
        one = SingleDeviceSharding(placement.devices[0])
        of_parameter = of_row = lambda path, x: one
    else:
        mesh, sizes = placement.mesh, dict(placement.mesh.shape)
        parts = sizes["data"] * sizes["fsdp"]

        def of_parameter(path: str, x: Any) -> NamedSharding:
            return NamedSharding(mesh, partition(path, x.shape, patterns(module), sizes))

        def of_row(path: str, x: Any) -> NamedSharding:
            cut = x.shape and x.shape[0] == rows and rows % parts == 0
            return NamedSharding(mesh, PartitionSpec(ROWS) if cut else PartitionSpec())

    lay = lambda tree, rule: jax.tree_util.tree_map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=rule(jax.tree_util.keystr(path, simple=True, separator="/"), x)
        ),
        tree,
    )
    tokens = lay(jax.ShapeDtypeStruct((rows,), "int32"), of_row)
    variables, state = lay(variables, of_parameter), lay(state, of_row)

    def step(variables: Any, tokens: Any, state: Any) -> tuple[Any, Any]:
        logits, state = models[0].apply(variables, tokens[:, None], state=state)
        return jax.numpy.argmax(logits[:, 0], axis=-1), state

    def lower() -> Any:
        with contextlib.nullcontext() if placement.single else jax.set_mesh(placement.mesh):
            return jax.jit(step, donate_argnums=2).lower(variables, tokens, state)

    return lower, {
        "flops": count_flops(step, variables, tokens, state).products,
        "parameters": local_bytes(variables),
        "cache": local_bytes(state),
        "rows": rows,
        "length": length,
    }


def _placed(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


class _Slice:
    """The requested chips, and what is compiled for them."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def devices(self, topology: dict[str, Any], chips: int) -> list[Any]:
        """The first `chips` devices of a topology."""
        from jax.experimental import topologies

        key = json.dumps(topology)
        if key not in self.known:
            try:
                self.known[key] = topologies.get_topology_desc(platform="tpu", **topology)
            except Exception as problem:
                name, why = topology["topology_name"], " ".join(str(problem).split())[:200]
                raise RunError(f"this libtpu can't make the slice {name}: {why}") from None
        return list(self.known[key].devices)[:chips]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The findings on one request."""
        import arch_jax.plan.workload  # noqa: F401  names the data of a model that is planned by its name

        for file in request["files"]:
            import_file(Path(file))
        experiment = Experiment.from_json(request["experiment"])
        shapes = {name: jax.ShapeDtypeStruct(tuple(one[0]), one[1]) for name, one in request["batch"].items()}
        devices = self.devices(request["topology"], request["chips"])
        if request["what"] == "decode":
            lower, facts = decode_step(experiment, shapes, devices, request["length"])
        else:
            lower, facts = train_step(experiment, shapes, devices, request["full_batch"])
        started = time.perf_counter()
        try:
            compiled = lower().compile()
        except ArchJaxError:
            raise
        except Exception as problem:  # of many types: a kernel is refused when it is lowered, a program when compiled
            return {"compiles": False, "seconds": time.perf_counter() - started, **facts, **refusal(problem)}
        seconds, memory = time.perf_counter() - started, compiled.memory_analysis()
        beside = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        peak = getattr(memory, "peak_memory_in_bytes", 0) or beside + memory.temp_size_in_bytes
        return {
            "compiles": True,
            "seconds": seconds,
            **facts,
            "arguments": memory.argument_size_in_bytes,
            "temporaries": max(0, peak - memory.argument_size_in_bytes),
            "program": memory.generated_code_size_in_bytes,
            "collectives": collectives(compiled.as_text()),
        }


@contextlib.contextmanager
def _answers() -> Iterator[Any]:
    """Keeps the standard output for answers: what libraries print goes to the standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as file:
        os.dup2(2, 1)
        yield file


def _leave_with(parent: int) -> None:
    """Ends this process once the one that started it is gone: compiling takes long, and nobody waits for the answer."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Answers requests until there are no more."""
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    with _answers() as file:
        chips = _Slice()
        for line in sys.stdin:
            with acting_as("tpu"):
                try:
                    answer = chips.answer(json.loads(line))
                except ArchJaxError as problem:
                    answer = {"error": str(problem), "usage": isinstance(problem, UsageError)}
            print(json.dumps(answer), file=file, flush=True)


if __name__ == "__main__":
    main()
