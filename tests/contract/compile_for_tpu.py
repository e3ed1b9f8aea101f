"""Compiles train steps with the real TPU compiler, on a machine without a TPU. Run in a process of its own.

    python tests/contract/compile_for_tpu.py [NAME ...]

libtpu reads its environment when JAX is imported, and must stay out of a process that trains on a CPU. Prints one JSON
line an architecture: what it is, seconds to compile, bytes of arguments and temporaries on one v5e chip.
"""

import functools
import json
import os
import sys
import time

os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    JAX_PLATFORMS="cpu",
    TPU_ACCELERATOR_TYPE="v5litepod-8",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    TF_CPP_MIN_LOG_LEVEL="3",
)

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from arch_jax import registry
from arch_jax.experiment import Experiment
from arch_jax.objectives import objective
from arch_jax.ops import convolution
from arch_jax.optimizer import Optimizer
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_program

# JAX runs on the CPU here: what an op chooses by platform must be told that it will be a TPU.
convolution.choose = functools.partial(convolution.choose, "tpu")


def compile_step(entry: registry.Entry, devices: list) -> dict:
    """Compiles the train program of an architecture's tiny form for the given chips, batches divided among them."""
    module = entry.tiny()
    experiment = Experiment(module, objective(entry.objective), data=None, optimizer=Optimizer(), steps=4)
    inputs, rows = entry.inputs.resized(module), 2 * len(devices)
    batch = jax.eval_shape(lambda: inputs.batch(module, rows, jax.random.key(0)))
    state = jax.eval_shape(lambda b: initial_state(experiment, b), batch)
    mesh = Mesh(devices, ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    divided = NamedSharding(mesh, PartitionSpec(None, "data"))
    batches = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype, sharding=divided), batch)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)
    count = jax.ShapeDtypeStruct((), "int32", sharding=everywhere)
    started = time.perf_counter()
    program = jax.jit(make_program(experiment), donate_argnums=0, out_shardings=everywhere)
    memory = program.lower(state, batches, count).compile().memory_analysis()
    return {
        "architecture": entry.architecture,
        "chips": len(devices),
        "seconds": round(time.perf_counter() - started, 1),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def main() -> None:
    """One line an architecture, on one chip and on a 2 x 4 slice."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    wanted = sys.argv[1:]
    architectures = {entry.architecture: entry for entry in reversed(registry.models().values())}
    for name in wanted or architectures:
        for devices in (topology.devices[:1], topology.devices):
            print(json.dumps(compile_step(architectures[name], devices)), flush=True)


if __name__ == "__main__":
    main()
