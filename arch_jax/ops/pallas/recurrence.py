"""h_t = a_t h_{t-1} + b_t by a kernel: one pass over a and b, h in fast memory.

Its time is that of reading a and b and writing h; a scan by XLA reads and writes each step's arrays on their own, and
an associative one goes over all of them log(time) times.

This has not run on a TPU or GPU yet: it is interpreted on a CPU against the definition, lowered for both, and compiled
by the v5e compiler.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.pallas.mesh import AmbientMesh
from arch_jax.ops.pallas.tile import rounded_up
from arch_jax.ops.platform import named_platform

PLATFORMS = ("tpu", "gpu")
SUBLANES = 8  # rows of a TPU's register
TIME_BLOCK = 256  # tokens that a TPU fetches at once
CHANNELS = {"tpu": 512, "gpu": 128}  # at most so many for a program; a TPU's are multiples of 128


def recurrence_kernel(
    a: Float[Array, "batch time channels"],
    b: Float[Array, "batch time channels"],
    before: Float[Array, "batch channels"],
    *,
    reverse: bool = False,
    platform: str | None = None,
    interpret: Any = None,
) -> Float[Array, "batch time channels"]:
    """h_t = a_t h_{t-1} + b_t; from the end, h_t = a_t h_{t+1} + b_t, with `reverse`.

    On a mesh the batch is sharded over "data" and "fsdp", and the channels over "tensor", as far as they divide.

    Args:
      a, b, before: float32; `before` is h_0, or with `reverse` what lies after the last token.
      platform: "tpu" or "gpu", the kernel that is taken; by default the one JAX runs on or is lowered for, and the
        TPU's, interpreted, on a CPU.
      interpret: as `flash_attention` has it.

    Returns:
      h. It has no gradient of its own: `ops.recurrence.linear_recurrence` gives it one.

    Raises:
      UsageError: another dtype, or an unknown platform.
    """
    named = platform if platform is not None else named_platform()
    if named is not None and named not in PLATFORMS:
        raise unknown("platform of a Pallas kernel", named, PLATFORMS)
    if a.dtype != jnp.float32 or b.dtype != jnp.float32:
        raise UsageError(
            f"the recurrence's kernel was given {a.dtype} and {b.dtype}; expected float32, or another form"
        )
    here = jax.default_backend()
    if interpret is None:
        interpret = named is None and here == "cpu"
    if named is None:
        named = here if here in PLATFORMS else "tpu"
    run = functools.partial({"tpu": _on_tpu, "gpu": _on_gpu}[named], reverse=reverse, interpret=interpret)
    mesh = AmbientMesh()
    if mesh.alone:
        return run(a, b, before)
    rows, channels = mesh.rows(a.shape[0]), mesh.tensor(a.shape[2])
    whole = PartitionSpec(rows, None, channels)
    return mesh.run(run, (a, b, before), (whole, whole, PartitionSpec(rows, channels)), whole)


def _padded(a, b, before, time, channels):
    """Pads with the identity: a = 1 and b = 0."""
    ends = ((0, 0), (0, time - a.shape[1]), (0, channels - a.shape[2]))
    pad = lambda x, value: jnp.pad(x, ends, constant_values=value) if any(end for _, end in ends) else x
    return pad(a, 1.0), pad(b, 0.0), jnp.pad(before, (ends[0], ends[2]))


def _on_tpu(a, b, before, *, reverse, interpret):
    """A program for each batch row and block of channels, along blocks of time; h waits in VMEM."""
    from jax.experimental.pallas import tpu as pltpu

    batch, time, channels = a.shape
    wide = min(CHANNELS["tpu"], rounded_up(channels, 128))
    long = min(TIME_BLOCK, rounded_up(time, SUBLANES))
    a, b, before = _padded(a, b, before, rounded_up(time, long), rounded_up(channels, wide))
    blocks = a.shape[1] // long
    order = range(SUBLANES - 1, -1, -1) if reverse else range(SUBLANES)

    def kernel(a_ref, b_ref, before_ref, h_ref, carried):
        @pl.when(pl.program_id(2) == 0)
        def _begin():
            carried[...] = before_ref[0]

        def rows(i, h):
            i = jnp.int32(long // SUBLANES - 1) - i if reverse else i
            at = pl.ds(pl.multiple_of(i * SUBLANES, SUBLANES), SUBLANES)
            a, b = a_ref[0, at, :], b_ref[0, at, :]
            out = [None] * SUBLANES
            for r in order:
                h = a[r : r + 1] * h + b[r : r + 1]
                out[r] = h
            h_ref[0, at, :] = jnp.concatenate(out)
            return h

        carried[...] = lax.fori_loop(jnp.int32(0), jnp.int32(long // SUBLANES), rows, carried[...])

    place = lambda n, c, t: (n, jnp.int32(blocks - 1) - t if reverse else t, c)
    block = pl.BlockSpec((1, long, wide), place)
    h = pl.pallas_call(
        kernel,
        grid=(batch, a.shape[2] // wide, blocks),
        in_specs=[block, block, pl.BlockSpec((1, 1, wide), lambda n, c, t: (n, 0, c))],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(a.shape, a.dtype),
        scratch_shapes=[pltpu.VMEM((1, wide), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(a, b, before[:, None])
    return h[:, :time, :channels]


def _on_gpu(a, b, before, *, reverse, interpret):
    """A program for each batch row and block of channels, which goes along all of time."""
    from jax.experimental.pallas import triton as plgpu  # here, so that the TPU's kernel does without Triton

    batch, time, channels = a.shape
    wide = min(CHANNELS["gpu"], max(32, 1 << (channels - 1).bit_length()))
    a, b, before = _padded(a, b, before, time, rounded_up(channels, wide))

    def kernel(a_ref, b_ref, before_ref, h_ref):
        n, at = pl.program_id(0), pl.ds(pl.program_id(1) * wide, wide)

        def step(t, h):
            t = jnp.int32(time - 1) - t if reverse else t
            h = a_ref[n, t, at] * h + b_ref[n, t, at]
            h_ref[n, t, at] = h
            return h

        lax.fori_loop(jnp.int32(0), jnp.int32(time), step, before_ref[n, at])

    h = pl.pallas_call(
        kernel,
        grid=(batch, a.shape[2] // wide),
        out_shape=jax.ShapeDtypeStruct(a.shape, a.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=max(1, wide // 32), num_stages=2),
        interpret=interpret,
    )(a, b, before)
    return h[:, :, :channels]
