"""Activations lie where the batch lies: what fsdp saves in parameters it does not lose in temporaries."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from arch_jax.ops.batch_sharding import by_rows

PROGRAM = """
import json, jax
from arch_jax.plan.plan import workload
from arch_jax.plan.tpu_compiler import train_step
found = {}
for axis in ("data", "fsdp"):
    changes = {"vocabulary": 2048, "depth": 2, "width": 64, "mixer.heads": 2, "batch": 32, "length": 64}
    of = workload("gpt2", changes | {f"mesh.{axis}": 8, "dtype": "float32"})
    lower, facts = train_step(of.experiment, of.batch, jax.devices())
    memory = lower().compile().memory_analysis()
    found[axis] = [memory.temp_size_in_bytes, facts["parameters"]]
print(json.dumps(found))
"""


def test_without_a_mesh_nothing_happens():
    x = jnp.ones((3, 2))
    assert by_rows(x) is x
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        assert by_rows(x) is x


@pytest.mark.slow
@pytest.mark.thorough
def test_fsdp_needs_no_more_for_activations_than_data():
    """Without it, the partitioner keeps all rows of the batch on every device: six times as much at this size."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    (data, whole), (fsdp, part) = found["data"], found["fsdp"]
    assert part < whole / 7
    assert fsdp < 1.3 * data
