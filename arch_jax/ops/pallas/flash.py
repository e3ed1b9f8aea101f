"""Flash attention by hand-written kernels: one call for TPU and GPU, forward and backward, on meshes too.

No score outlives its tile: kept for the gradients are q, k, v, the output and two numbers a row (the parts of
its logsumexp), and the tiles' probabilities are computed again from them (arXiv 2205.14135, section 3.1).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.attention.patterns import Pattern
from arch_jax.ops.pallas import gpu, tpu
from arch_jax.ops.pallas.blocks import Blocks, choose_blocks
from arch_jax.ops.pallas.mesh import AmbientMesh
from arch_jax.ops.pallas.schedule import Rule
from arch_jax.ops.pallas.tile import rounded_up
from arch_jax.ops.platform import named_platform

__all__ = ["PLATFORMS", "Blocks", "flash_attention"]

PLATFORMS = ("tpu", "gpu")
Values = Float[Array, "batch time heads vdim"]


@dataclasses.dataclass(frozen=True)
class _Form:
    """The static arguments of an attention."""

    rule: Rule
    blocks: Blocks
    platform: str
    interpret: Any


def flash_attention(
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch source kv_heads dim"],
    v: Float[Array, "batch source kv_heads vdim"],
    *,
    causal: bool = False,
    window: int | None = None,
    query_ids: Int[Array, "batch time"] | None = None,
    key_ids: Int[Array, "batch source"] | None = None,
    bias: Float[Array, "#batch #heads #time #source"] | None = None,
    alibi: Float[Array, "heads"] | None = None,
    softcap: float | int | None = None,
    scale: float | int,
    pattern: Pattern | None = None,
    logsumexp: bool = False,
    blocks: Blocks | None = None,
    platform: str | None = None,
    interpret: Any = None,
) -> (
    Float[Array, "batch time heads vdim"]
    | tuple[Float[Array, "batch time heads vdim"], Float[Array, "batch heads time"]]
):
    """`arch_jax.ops.attention.dot_product.attention` by a kernel that keeps no scores; its arguments are checked there.

    A query that sees nothing gives exactly 0, and passes on no gradient. Tiles that `causal`, `window` and `pattern`
    hide are skipped, forward and backward. On a mesh the batch is sharded over "data" and "fsdp" and the heads over
    "tensor", as far as they divide; inside a `shard_map` (with `check_vma=False`) every device takes what it is given.

    Args:
      q, k, v: all float32 or all bfloat16, `dim` and `vdim` at most 256; sums are float32.
      query_ids, key_ids: segments; only equal ids other than 0 see each other. Both or None.
      bias: added to the scores after the cap; it has a gradient, which is computed only if asked for.
      alibi: a slope for each head, of the term -slope |i - j| (arXiv 2108.12409, section 3); a constant: its gradient
        is 0.
      scale: factor of q k^T.
      pattern: the pairs that are visible at all, beside `causal` and the rest.
      logsumexp: also give log(sum(exp(scores))) over what is visible, in float32; -inf where that is nothing.
      blocks: sizes of the tiles; from a table by default.
      platform: "tpu" or "gpu", the kernel that is taken; by default what `ops.platform.acting_as` says, else the one
        JAX runs on, and the TPU's, interpreted, on a CPU.
      interpret: True runs the kernel by XLA operations anywhere, slowly; an `InterpretParams` of
        `jax.experimental.pallas.tpu` simulates a TPU's memories. Default: only where JAX runs on a CPU and no platform
        is named.

    Returns:
      The attended values in q's dtype; with `logsumexp`, a pair.

    Raises:
      UsageError: other dtypes, a head size above 256, block sizes that the platform can't take, an unknown platform.
    """
    named = platform if platform is not None else named_platform()
    if named is not None and named not in PLATFORMS:
        raise unknown("platform of a Pallas kernel", named, PLATFORMS)
    here = jax.default_backend()
    if interpret is None:
        interpret = named is None and here == "cpu"
    if named is None:
        named = here if here in PLATFORMS else "tpu"
    dtype = jnp.result_type(q, k, v)
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise UsageError(
            f"the Pallas kernel was given {dtype}; expected float32 or bfloat16, or another implementation"
        )
    (_, time, _, dim), (source, vdim) = q.shape, (k.shape[1], v.shape[3])
    chosen = choose_blocks(
        named,
        max(dim, vdim),
        dtype.itemsize,
        time,
        source,
        window=window,
        granularity=None if pattern is None else pattern.granularity,
    )
    blocks = chosen if blocks is None else blocks
    blocks.check(named, interpreted=interpret is not False)
    cap = None if softcap is None else float(softcap)
    rule = Rule(time, source, float(scale), causal=causal, window=window, softcap=cap, pattern=pattern)
    if bias is not None and bias.shape[3] != source:
        bias = jnp.broadcast_to(bias, (*bias.shape[:3], source))
    arrays = [x.astype(dtype) for x in (q, k, v)]
    slopes = None if alibi is None else alibi.astype(jnp.float32)
    ids = [None if x is None else x.astype(jnp.int32) for x in (query_ids, key_ids)]
    form = _Form(rule, blocks, named, interpret)
    out, lse = _over_mesh(functools.partial(_attend, form), (*arrays, bias, slopes, *ids))
    out = out.astype(q.dtype)
    return (out, lse) if logsumexp else out


def _over_mesh(attend, arrays):
    """Runs `attend` on each device's part of the ambient mesh."""
    mesh = AmbientMesh()
    if mesh.alone:
        return attend(*arrays)
    q, k, bias = arrays[0], arrays[1], arrays[3]
    batch = mesh.rows(q.shape[0])
    heads = mesh.tensor(q.shape[2], *([] if k.shape[2] == 1 else [k.shape[2]]))
    kv_heads = heads if k.shape[2] > 1 else None
    cut = lambda axis, name: name if bias.shape[axis] > 1 else None
    specs = (
        PartitionSpec(batch, None, heads),
        PartitionSpec(batch, None, kv_heads),
        PartitionSpec(batch, None, kv_heads),
        None if bias is None else PartitionSpec(cut(0, batch), cut(1, heads)),
        PartitionSpec(heads),
        PartitionSpec(batch),
        PartitionSpec(batch),
    )
    return mesh.run(attend, arrays, specs, (PartitionSpec(batch, None, heads), PartitionSpec(batch, heads)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(form: _Form, q, k, v, bias, slopes, query_ids, key_ids):
    return _forward(form, q, k, v, bias, slopes, query_ids, key_ids)[0]


def _forward(form, q, k, v, bias, slopes, query_ids, key_ids):
    given = {"q": q, "k": k, "v": v, "bias": bias, "slopes": slopes, "query_ids": query_ids, "key_ids": key_ids}
    rows, columns = form.blocks.forward
    inside = _laid_out(form, given, rows, columns)
    if form.platform == "tpu":
        out, *numbers = tpu.forward(inside, form.rule, rows, columns, form.interpret)
    else:
        out, *numbers = gpu.forward(inside, form.rule, form.blocks, form.interpret)
    out = _taken_out(form, out, v.shape[3], form.rule.time)
    largest, logarithm = (x[:, :, : form.rule.time] for x in numbers)
    return (out, largest + logarithm), (q, k, v, bias, slopes, query_ids, key_ids, out, largest, logarithm)


def _backward(form, saved, cotangents):
    q, k, v, bias, slopes, query_ids, key_ids, out, largest, logarithm = saved
    do, dlse = cotangents
    # exp(s - inf) is 0: a row that saw nothing has no gradient.
    nothing = jnp.isneginf(logarithm)
    delta = jnp.sum(do.astype(jnp.float32) * out.astype(jnp.float32), axis=-1).transpose(0, 2, 1) - dlse
    given = {
        "q": q,
        "k": k,
        "v": v,
        "bias": bias,
        "slopes": slopes,
        "query_ids": query_ids,
        "key_ids": key_ids,
        "do": do,
        "largest": jnp.where(nothing, jnp.inf, largest),
        "logarithm": jnp.where(nothing, 0.0, logarithm),
        "delta": jnp.where(nothing, 0.0, delta),
    }
    rows, columns = form.blocks.backward
    inside = _laid_out(form, given, rows, columns)
    if form.platform == "tpu":
        kernels, how = tpu, (form.rule, rows, columns, form.interpret)
    else:
        kernels, how = gpu, (form.rule, form.blocks, form.interpret)
    time, source = form.rule.time, form.rule.source
    dq = _taken_out(form, kernels.query_gradient(inside, *how), q.shape[3], time)
    dk, dv = kernels.key_value_gradients(inside, *how)
    dk, dv = _taken_out(form, dk, k.shape[3], source), _taken_out(form, dv, v.shape[3], source)
    dbias = None
    if bias is not None:
        # A program of its own: where nobody asks for this gradient, the compiler drops it.
        dbias = kernels.bias_gradient(inside, *how)[:, :, :time, :source].astype(bias.dtype)
    return dq, dk, dv, dbias, None, None, None


_attend.defvjp(_forward, _backward)


def _laid_out(form, given, rows, columns):
    """The arrays as the platform's kernels take them: lengths whole blocks, head sizes and axes as they like them."""
    time, source = (rounded_up(n, size) for n, size in ((form.rule.time, rows), (form.rule.source, columns)))
    found = {}
    for name, x in given.items():
        if x is None or name == "slopes":
            found[name] = x
        elif name in ("q", "k", "v", "do"):
            length = time if name in ("q", "do") else source
            size = x.shape[3] if form.platform == "tpu" else max(16, 1 << (x.shape[3] - 1).bit_length())
            x = _padded(x, {1: length, 3: size}, 0)
            found[name] = x.transpose(0, 2, 1, 3) if form.platform == "tpu" else x
        elif name in tpu.NUMBERS:
            found[name] = _padded(x, {2: time}, jnp.inf if name == "largest" else 0.0)
        elif name == "bias":
            found[name] = _padded(x, {2: time if x.shape[2] > 1 else 1, 3: source}, 0)
        else:
            found[name] = _padded(x, {1: time if name == "query_ids" else source}, 0)
    return found


def _padded(x, sizes, value):
    ends = [(0, sizes.get(axis, n) - n) for axis, n in enumerate(x.shape)]
    return jnp.pad(x, ends, constant_values=value) if any(end for _, end in ends) else x


def _taken_out(form, x, dim, length):
    """A kernel's output as the caller has it: "batch length heads dim"."""
    x = x.transpose(0, 2, 1, 3) if form.platform == "tpu" else x
    return x[:, :length, :, :dim]
