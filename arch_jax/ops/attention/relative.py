"""Attention with vectors for relative positions, added to keys and values (Shaw et al. 2018).

Dense: every score of every head is held. The term on the values needs each pair's probability, which no blocked form
keeps; use ALiBi or T5's buckets where sequences are long.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = ["relative_attention", "relative_attention_reference"]


def relative_attention(
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch source kv_heads dim"],
    v: Float[Array, "batch source kv_heads dim"],
    key_table: Float[Array, "distances dim"],
    value_table: Float[Array, "distances dim"] | None,
    distance: Int[Array, "#batch time source"],
    visible: Bool[Array, "#batch time source"],
    *,
    scale: float | int | None = None,
    softcap: float | int | None = None,
) -> Float[Array, "batch time heads dim"]:
    """softmax(scale q (k + a^K)^T) (v + a^V), where a^K and a^V depend on the clipped distance of query and key.

    Args:
      q, k, v: as for `ops.attention`.
      key_table, value_table: a vector for each distance from -n to n; None for no term on the values.
      distance: position of the query less that of the key, clipped to [-n, n] here.
      visible: True for pairs that attend; a query that sees nothing gives exactly 0.
      scale: dim^-1/2 by default.
      softcap: as for `ops.attention`.

    Returns:
      The attended values, in q's dtype; scores and softmax are computed in at least float32.

    Source: Shaw et al. 2018, Self-Attention with Relative Position Representations (arXiv 1803.02155), equations 3, 4;
    the terms are computed apart, without a vector for each pair, as in section 3.3.
    """
    batch, time, heads, dim = q.shape
    kv_heads, longest = k.shape[2], key_table.shape[0] // 2
    precision = jnp.promote_types(q.dtype, jnp.float32)
    q32, k32, v32 = (x.astype(precision) for x in (q, k, v))
    q_btkgd = q32.reshape(batch, time, kv_heads, heads // kv_heads, dim) * (dim**-0.5 if scale is None else scale)
    index = jnp.clip(distance, -longest, longest) + longest  # "batch|1 time source"
    index = jnp.broadcast_to(index, (batch, *index.shape[1:]))[:, :, None, None, :]
    by_distance = jnp.einsum("btkgd,nd->btkgn", q_btkgd, key_table.astype(precision))
    scores = jnp.einsum("btkgd,bskd->btkgs", q_btkgd, k32)
    scores = scores + jnp.take_along_axis(by_distance, jnp.broadcast_to(index, scores.shape), axis=-1)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    visible = visible[:, :, None, None, :]
    scores = jnp.where(visible, scores, -jnp.inf)
    largest = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    p = weights / jnp.where(total == 0, 1, total)
    out = jnp.einsum("btkgs,bskd->btkgd", p, v32)
    if value_table is not None:
        rows = jax.lax.broadcasted_iota(jnp.int32, p.shape[:-1], 1)
        zeros = jnp.zeros((*p.shape[:-1], key_table.shape[0]), precision)
        add = jax.vmap(lambda z, i, x: z.at[i].add(x))  # probabilities of equal distances, summed
        flat = lambda x: jnp.broadcast_to(x, p.shape).reshape(rows.size, -1)
        gathered = add(zeros.reshape(rows.size, -1), flat(index), flat(p)).reshape(zeros.shape)
        out = out + jnp.einsum("btkgn,nd->btkgd", gathered, value_table.astype(precision))
    return out.reshape(batch, time, heads, dim).astype(q.dtype)


def relative_attention_reference(q, k, v, key_table, value_table, distance, visible, *, scale=None, softcap=None):
    """`relative_attention` as equations 3 and 4 define it: a key and a value of its own for every pair."""
    (batch, time, heads, dim), kv_heads, longest = q.shape, k.shape[2], key_table.shape[0] // 2
    k, v = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k, v))
    index = jnp.broadcast_to(jnp.clip(distance, -longest, longest) + longest, (batch, time, k.shape[1]))
    keys = k[:, None] + key_table[index][:, :, :, None]  # "batch time source heads dim"
    values = v[:, None] + (0 if value_table is None else value_table[index][:, :, :, None])
    scores = jnp.einsum("bthd,btshd->btsh", q, keys) * (dim**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    visible = jnp.broadcast_to(visible, (batch, time, k.shape[1]))[..., None]
    p = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=2) * visible
    return jnp.einsum("btsh,btshd->bthd", p, values)
