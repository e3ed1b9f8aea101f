"""Compiles train steps with the real TPU compiler, on a machine without a TPU. Run in a process of its own.

    python tests/contract/compile_for_tpu.py [NAME ...]

libtpu reads its environment when JAX is imported, and must stay out of a process that trains on a CPU. Prints one JSON
line an architecture: what it is, seconds to compile, bytes of arguments and temporaries on one v5e chip.
"""

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

from arch_jax import registry
from arch_jax.experiment import Experiment
from arch_jax.objectives import objective
from arch_jax.ops.platform import acting_as
from arch_jax.optimizer import Optimizer
from arch_jax.plan.tpu_compiler import train_step


def compile_step(entry: registry.Entry, devices: list) -> dict:
    """Compiles the train program of an architecture's tiny form for the given chips, batches divided among them."""
    module = entry.tiny()
    experiment = Experiment(module, objective(entry.objective), data=None, optimizer=Optimizer(), steps=4)
    inputs, rows = entry.inputs.resized(module), 2 * len(devices)
    batch = jax.eval_shape(lambda: inputs.batch(module, rows, jax.random.key(0)))
    started = time.perf_counter()
    with acting_as("tpu"):  # JAX runs on the CPU here: what an operation chooses by platform is told otherwise
        lower, _ = train_step(experiment, batch, devices)
        memory = lower().compile().memory_analysis()
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
