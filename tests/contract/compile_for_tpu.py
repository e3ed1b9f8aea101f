"""Compiles train steps with the real TPU compiler, on a machine without a TPU. Run in a process of its own.

    python tests/contract/compile_for_tpu.py [NAME ...]

libtpu reads its environment when JAX is imported, and must stay out of a process that trains on a CPU. Prints one JSON
line an architecture and a number of chips: what it is, seconds to compile, the types of its kernels, and bytes of
arguments and temporaries on one v5e chip; null where it was lowered and not compiled.

The first architecture of each file is compiled for eight chips, and each chip's part of that program has the rows that
one chip has alone: what a TPU can't take, it can't take there. Others of the file are made of the same parts: they are
lowered, and compiled if their kernels are of other types. For one chip are lowered those of the compiled that have
kernels (on eight chips they stand under `shard_map`); of these are compiled the first, and those whose kernels are of
other types than on eight.
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


def compile_step(entry: registry.Entry, devices: list, known: list[str] | None = None) -> dict:
    """Compiles the train program of an architecture's tiny form for the given chips, batches divided among them.

    Args:
      entry: the architecture.
      devices: the chips.
      known: types of kernels; a program that has these and no others is lowered, and not compiled.
    """
    module = entry.tiny()
    experiment = Experiment(module, objective(entry.objective), data=None, optimizer=Optimizer(), steps=4)
    inputs, rows = entry.inputs.resized(module), 2 * len(devices)
    batch = jax.eval_shape(lambda: inputs.batch(module, rows, jax.random.key(0)))
    started = time.perf_counter()
    with acting_as("tpu"):  # JAX runs on the CPU here: what an operation chooses by platform is told otherwise
        lower, _ = train_step(experiment, batch, devices)
        lowered = lower()
        lines = [line for line in lowered.as_text().splitlines() if "@tpu_custom_call" in line]
        kernels = sorted(line.rsplit(" : ", 1)[1] for line in lines)
        # What is asked is whether it compiles, not how fast it would run.
        options = {"exec_time_optimization_effort": -1.0}
        memory = lowered.compile(compiler_options=options).memory_analysis() if kernels != known else None
    return {
        "architecture": entry.architecture,
        "chips": len(devices),
        "seconds": round(time.perf_counter() - started, 1),
        "kernels": kernels,
        "argument_bytes": memory and memory.argument_size_in_bytes,
        "temporary_bytes": memory and memory.temp_size_in_bytes,
    }


def main() -> None:
    """One line an architecture on a 2 x 4 slice, and one on one chip where it has kernels."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    wanted = sys.argv[1:]
    architectures = {entry.architecture: entry for entry in reversed(registry.models().values())}
    of_file, alone = {}, 0
    for name in wanted or architectures:
        entry = architectures[name]
        slice_of_eight = compile_step(entry, topology.devices, of_file.get(entry.build.__module__))
        of_file.setdefault(entry.build.__module__, slice_of_eight["kernels"])
        print(json.dumps(slice_of_eight), flush=True)
        if slice_of_eight["kernels"] and slice_of_eight["argument_bytes"]:
            known = slice_of_eight["kernels"] if alone else None
            print(json.dumps(compile_step(entry, topology.devices[:1], known)), flush=True)
            alone += 1


if __name__ == "__main__":
    main()
