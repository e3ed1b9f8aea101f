"""The kernels of attention and of the recurrence on a mesh of eight CPU devices, beside one.

Run in a process of its own; prints a JSON line.
"""

import json
import os

# Compiled in haste: most of the time is compilation.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from arch_jax.ops.attention.dot_product import attention_reference
from arch_jax.ops.pallas.flash import Blocks, flash_attention
from arch_jax.ops.recurrence.linear import linear_recurrence

AXES = {"data": 2, "fsdp": 2, "tensor": 2, "expert": 1, "sequence": 1}
BATCH, TIME, HEADS, DIM = 4, 20, 4, 8


def draw(*shape):
    """Normal numbers, the same for the same shape."""
    return jnp.asarray(np.random.default_rng(len(shape) + shape[0]).normal(size=shape), jnp.float32)


def differences(batch: int, kv_heads: int, bias: tuple[int, int], form) -> dict[str, float]:
    """Largest differences from the oracle of one device, over the largest number, for each output and gradient."""
    arrays = draw(batch, TIME, HEADS, DIM), *(draw(batch, TIME, kv_heads, DIM) + n for n in range(2))
    arrays = (*arrays, draw(*bias, TIME, TIME))
    ids = jnp.asarray(np.sort(np.random.default_rng(0).integers(0, 3, size=(batch, TIME)), axis=1))
    slopes = 2.0 ** -jnp.arange(1, HEADS + 1)
    given = {"causal": True, "scale": 0.4, "alibi": slopes}

    def both(form, **segments):
        def loss(q, k, v, bias):
            out = form(q, k, v, bias=bias, **given, **segments)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))

    (_, out), expected = both(attention_reference, segment_ids=ids)(*arrays)
    mesh = jax.make_mesh(tuple(AXES.values()), tuple(AXES), axis_types=(AxisType.Auto,) * len(AXES))
    with jax.set_mesh(mesh):
        (_, found), got = both(form, query_ids=ids, key_ids=ids)(*arrays)
    names = ("out", "dq", "dk", "dv", "dbias")
    pairs = zip((found, *got), (out, *expected))
    result = {n: float(jnp.abs(a - b).max() / jnp.abs(b).max()) for n, (a, b) in zip(names, pairs)}
    return result | {"pieces": len({str(s.index) for s in found.addressable_shards})}


def interpreted(*arrays, **given):
    """The kernel by XLA operations."""
    return flash_attention(*arrays, blocks=Blocks(16, 16), interpret=True, platform="tpu", **given)


def inside_a_shard_map(q, k, v, **given):
    """Each device computes its own rows, as the caller cut them."""
    rows = PartitionSpec(("data", "fsdp", "tensor"))
    form = lambda q, k, v: interpreted(q, k, v, causal=True, scale=0.4)
    return jax.shard_map(form, in_specs=(rows,) * 3, out_specs=rows, check_vma=False)(q, k, v)


def recurrences() -> dict[str, float]:
    """Largest differences of h and its gradients from those of the sequential form on one device."""
    a, b, before = jnp.tanh(draw(BATCH, TIME, 6)), draw(BATCH, TIME, 6) + 1, draw(BATCH, 6)

    def both(form):
        def loss(*arrays):
            h = linear_recurrence(*arrays, form=form)
            return jnp.sum(jnp.sin(h)), h

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))

    (_, h), expected = both("sequential")(a, b, before)
    mesh = jax.make_mesh(tuple(AXES.values()), tuple(AXES), axis_types=(AxisType.Auto,) * len(AXES))
    with jax.set_mesh(mesh):
        (_, found), got = both("pallas")(a, b, before)
    pairs = zip(("h", "da", "db", "dbefore"), (found, *got), (h, *expected))
    result = {name: float(jnp.abs(x - y).max() / jnp.abs(y).max()) for name, x, y in pairs}
    return result | {"pieces": len({str(s.index) for s in found.addressable_shards})}


def kernels_lowered_for_tpu() -> int:
    """How many kernels are in the gradient's program for a mesh of TPUs."""
    arrays = [draw(BATCH, 256, HEADS, 64) for _ in range(3)]
    loss = lambda *arrays: jnp.sum(flash_attention(*arrays, causal=True, scale=0.1, platform="tpu"))
    mesh = jax.make_mesh(tuple(AXES.values()), tuple(AXES), axis_types=(AxisType.Auto,) * len(AXES))
    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays)
        return traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call")


if __name__ == "__main__":
    q, k, v = (draw(8, TIME, HEADS, DIM) + n for n in range(3))
    mesh = jax.make_mesh(tuple(AXES.values()), tuple(AXES), axis_types=(AxisType.Auto,) * len(AXES))
    with jax.set_mesh(mesh):
        inside = jax.jit(inside_a_shard_map)(q, k, v)
    expected = attention_reference(q, k, v, causal=True, scale=0.4)
    found = {
        "grouped": differences(BATCH, 2, (1, HEADS), interpreted),
        "indivisible": differences(3, 1, (3, 1), interpreted),
        "recurrence": recurrences(),
        "inside a shard_map": float(jnp.abs(inside - expected).max()),
        "kernels": kernels_lowered_for_tpu(),
    }
    print(json.dumps(found))
