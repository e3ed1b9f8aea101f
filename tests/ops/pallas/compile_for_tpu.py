"""Compiles the kernels of attention and of the recurrence with the real TPU compiler, on a machine without a TPU.

Run in a process of its own: libtpu reads its environment when JAX is imported (`arch_jax.plan.tpu_compiler` makes
it, by `environment`), and must stay out of a process that trains on a CPU. Prints one JSON line a case: its name, how
many kernels the program has, and the bytes of its temporaries on one v5e chip. What does not fit a chip's VMEM is
refused here, and only here.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from arch_jax.ops.attention.patterns import BigBird, Fixed, Longformer, Strided
from arch_jax.ops.pallas.flash import flash_attention
from arch_jax.ops.platform import acting_as
from arch_jax.ops.recurrence.linear import linear_recurrence


def cases() -> dict[str, dict]:
    """Name -> (batch, time, heads, head size), kv_heads, dtype and arguments."""
    found = {}
    for dim in (64, 128, 256):
        for dtype in ("float32", "bfloat16"):
            # Long: tiles are those of 1024 (test_schedule.py), and what grows with the length is at its largest.
            found[f"causal {dim} {dtype}"] = {
                "shape": (1, 8192, 2, dim), "kv_heads": 1, "dtype": dtype, "causal": True,
            }  # fmt: skip
            more = {"causal": True, "softcap": 3.0, "segments": True, "alibi": True, "bias": True}
            found[f"everything {dim} {dtype}"] = {"shape": (2, 1000, 2, dim), "kv_heads": 1, "dtype": dtype, **more}
    found["large"] = {"shape": (8, 4096, 8, 64), "kv_heads": 8, "dtype": "bfloat16"}
    for dim in (20, 80):
        small = {"shape": (1, 77, 2, dim), "kv_heads": 2, "dtype": "float32", "window": 9}
        found[f"small {dim}"] = small
    for pattern in (BigBird(), BigBird(100), BigBird(256), Strided(100), Fixed(100), Longformer(100)):
        found[repr(pattern)] = {
            "shape": (1, 2048, 2, 64), "kv_heads": 1, "dtype": "bfloat16", "causal": True, "pattern": pattern,
        }  # fmt: skip
    return found


def compile_one(devices, shape, kv_heads, dtype, bias=False, segments=False, alibi=False, **given):
    """The compiled program of the output and all gradients, rows and heads divided among the devices."""
    batch, time, heads, dim = shape
    mesh = None
    if len(devices) == 1:
        place = lambda spec: SingleDeviceSharding(devices[0])
    else:
        mesh = Mesh(np.array(devices).reshape(4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
        place = lambda spec: NamedSharding(mesh, spec)
    array = lambda shape, dtype, *spec: jax.ShapeDtypeStruct(shape, dtype, sharding=place(PartitionSpec(*spec)))
    rows = ("data", None, "tensor")
    arrays = {name: array((batch, time, heads, dim), dtype, *rows) for name in "q"}
    arrays |= {name: array((batch, time, kv_heads, dim), dtype, *rows) for name in "kv"}
    if bias:
        arrays["bias"] = array((1, heads, time, time), "float32")
    constants = {name: array((batch, time), "int32", "data") for name in ("query_ids", "key_ids") if segments}
    if alibi:
        constants["alibi"] = array((heads,), "float32")

    def loss(arrays, constants):
        return jnp.sum(flash_attention(**arrays, **constants, scale=dim**-0.5, **given).astype(jnp.float32))

    step = jax.jit(jax.value_and_grad(loss))
    with acting_as("tpu"):
        if mesh is None:
            return step.lower(arrays, constants).compile()
        with jax.set_mesh(mesh):
            return step.lower(arrays, constants).compile()


def compile_recurrence(device, batch, time, *state):
    """The compiled program of h and all gradients on one chip."""
    place = SingleDeviceSharding(device)
    array = lambda *shape: jax.ShapeDtypeStruct(shape, "float32", sharding=place)
    loss = lambda a, b, before: jnp.sum(linear_recurrence(a, b, before) ** 2)
    arrays = [array(batch, time, *state), array(batch, time, *state), array(batch, *state)]
    with acting_as("tpu"):
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arrays).compile()


def main() -> None:
    """A line a case on one chip, and one on a 4 x 2 mesh."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    work = [(name, devices[:1], given) for name, given in cases().items()]
    on_mesh = {"shape": (8, 1024, 4, 64), "kv_heads": 2, "dtype": "bfloat16", "causal": True, "segments": True}
    programs = [
        (name, compile_one, (chips,), given) for name, chips, given in [*work, ("mesh", list(devices), on_mesh)]
    ]
    for shape in ((2, 300, 96, 16), (8, 4096, 1024), (1, 1000, 5)):
        programs.append((f"recurrence {shape}", compile_recurrence, (devices[0], *shape), {}))
    for name, build, arguments, given in programs:
        compiled = build(*arguments, **given)
        kernels = compiled.as_text().count('custom_call_target="tpu_custom_call"')
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        print(json.dumps({"case": name, "kernels": kernels, "temporary_bytes": temporaries}), flush=True)


if __name__ == "__main__":
    main()
