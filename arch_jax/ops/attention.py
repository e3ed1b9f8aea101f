"""Softmax attention: one call for every form, chosen by platform and shape."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.attention_blocked import blocked_attention

__all__ = ["attention", "attention_reference", "choose", "implementations"]

SegmentIds = Int[Array, "batch time"] | tuple[Int[Array, "batch time"], Int[Array, "batch source"]]


def implementations() -> tuple[str, ...]:
    """The names that `attention(implementation=...)` takes, beside "auto"."""
    return ("reference", "xla")


def choose(time: int, source: int, platform: str | None = None) -> str:
    """What `attention(implementation="auto")` picks for `time` queries over `source` keys.

    Args:
      platform: "cpu", "gpu" or "tpu"; None for the one jax runs on. Today's choice is the same on all three.
    """
    # Nothing to cut into blocks, and an empty sum has no maximum to subtract.
    return "reference" if time == 0 or source == 0 else "xla"


def attention(
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch source kv_heads dim"],
    v: Float[Array, "batch source kv_heads vdim"],
    *,
    mask: Bool[Array, "#batch #heads #time #source"] | None = None,
    bias: Float[Array, "#batch #heads #time #source"] | None = None,
    causal: bool = False,
    window: int | None = None,
    segment_ids: SegmentIds | None = None,
    softcap: float | int | None = None,
    scale: float | int | None = None,
    implementation: str = "auto",
) -> Float[Array, "batch time heads vdim"]:
    """Scaled dot-product attention: softmax(scale q k^T + bias, over what is visible) v, for each head.

    Query head h reads kv head `h // (heads // kv_heads)`, so that kv_heads == heads is multi-head, 1 multi-query and
    anything between grouped-query attention. A pair is visible if every one of `mask`, `causal`, `window` and
    `segment_ids` that is given allows it. A query that sees nothing gives exactly 0, and passes on no gradient.

    Args:
      q, k, v: queries, keys and values; `heads` is a multiple of `kv_heads`, and v's dimension may be its own.
      mask: True where the query may attend to the key; rank 4, axes may be 1.
      bias: added to the scaled scores (-inf hides a pair); rank 4, axes may be 1. It has a gradient.
      causal: query i sees the keys j <= i.
      window: at least 1; query i sees i - window < j and, unless causal, j < i + window.
      segment_ids: integers; only equal ids other than 0 (padding) see each other. One array for queries and keys, or a
        pair of them.
      softcap: c > 0 replaces the scaled scores s by c tanh(s / c), before bias and mask (Gemma 2, arXiv 2408.00118,
        section 2).
      scale: what q k^T is multiplied by; dim^-1/2 by default.
      implementation: a name of `implementations()`, or "auto", which is what `choose` tells. "reference" holds every
        score at once; "xla" works in blocks of query rows, keeps only q, k and v for the gradient, and has
        reverse-mode derivatives only: take "reference" for forward mode or second derivatives.

    Returns:
      The attended values, in q's dtype; scores and softmax are computed in at least float32.

    Raises:
      UsageError: an unknown implementation, heads that are no multiple of kv_heads, a mask or bias not broadcastable,
        `window`, `softcap` or `segment_ids` out of range, or `causal` or `window` where time and source differ.

    Source: Attention Is All You Need (arXiv 1706.03762), equation 1; grouped queries: GQA (arXiv 2305.13245), section
    2.2.
    """
    time, source = q.shape[1], k.shape[1]
    if implementation != "auto" and implementation not in implementations():
        raise unknown("implementation of attention", implementation, (*implementations(), "auto"))
    _check(q, k, v, mask, bias, causal, window, segment_ids, softcap)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    given = {"mask": mask, "bias": bias, "causal": causal, "window": window, "softcap": softcap, "scale": scale}
    name = choose(time, source) if implementation == "auto" else implementation
    if name == "reference" or choose(time, source) == "reference":
        return attention_reference(q, k, v, segment_ids=segment_ids, **given)
    query_ids, key_ids = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
    return blocked_attention(q, k, v, query_ids=query_ids, key_ids=key_ids, **given)


def attention_reference(
    q, k, v, *, mask=None, bias=None, causal=False, window=None, segment_ids=None, softcap=None, scale=None
):
    """The oracle for `attention`, with its arguments unchecked: every score of every head, and nothing clever."""
    (time, heads), (source, kv_heads) = q.shape[1:3], k.shape[1:3]
    precision = jnp.promote_types(q.dtype, jnp.float32)
    q32, k32, v32 = (x.astype(precision) for x in (q, k, v))
    k32, v32 = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k32, v32))
    scores_bhts = jnp.einsum("bthd,bshd->bhts", q32, k32) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores_bhts = softcap * jnp.tanh(scores_bhts / softcap)
    if bias is not None:
        scores_bhts = scores_bhts + bias.astype(precision)
    visible = jnp.ones((1, 1, time, source), bool) if mask is None else mask
    i, j = jnp.arange(time)[:, None], jnp.arange(source)
    if causal:
        visible = visible & (j <= i)
    if window is not None:
        visible = visible & (i - window < j) & (j < i + window)
    if segment_ids is not None:
        query_ids, key_ids = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
        query_ids, key_ids = query_ids[:, None, :, None], key_ids[:, None, None, :]
        visible = visible & (query_ids == key_ids) & (query_ids != 0)
    scores_bhts = jnp.where(visible, scores_bhts, -jnp.inf)
    # A row that sees nothing has only -inf, and softmax would give NaN: any finite maximum makes its sum 0 instead.
    largest = jnp.max(scores_bhts, axis=-1, keepdims=True, initial=-jnp.inf)
    weights_bhts = jnp.exp(scores_bhts - jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0)))
    total = jnp.sum(weights_bhts, axis=-1, keepdims=True)
    probabilities_bhts = weights_bhts / jnp.where(total == 0, 1, total)
    return jnp.einsum("bhts,bshd->bthd", probabilities_bhts, v32).astype(q.dtype)


def _check(q, k, v, mask, bias, causal, window, segment_ids, softcap):
    (batch, time, heads, dim), (source, kv_heads) = q.shape, k.shape[1:3]
    if k.shape != (batch, source, kv_heads, dim) or v.shape[:3] != k.shape[:3]:
        raise UsageError(
            f"q, k and v have the shapes {q.shape}, {k.shape} and {v.shape}; expected (batch, time, heads, dim), "
            "(batch, source, kv_heads, dim) and (batch, source, kv_heads, vdim)"
        )
    if kv_heads < 1 or heads % kv_heads:
        valid = [n for n in range(1, heads + 1) if heads % n == 0]
        near = min(valid, key=lambda n: abs(n - kv_heads), default=1)
        raise UsageError(
            f"{heads} query heads cannot share {kv_heads} kv heads; expected heads to be a multiple of kv_heads "
            f"(the nearest is {near})"
        )
    full = (batch, heads, time, source)
    for name, x in (("mask", mask), ("bias", bias)):
        if x is not None and (x.ndim != 4 or any(a not in (1, b) for a, b in zip(x.shape, full))):
            raise UsageError(
                f"{name} has the shape {x.shape}; expected rank 4 (insert axes of 1), broadcasting to "
                f"(batch, heads, time, source) = {full}"
            )
    if mask is not None and mask.dtype != bool:
        raise UsageError(f"mask is of {mask.dtype}; expected bool, True where a query may attend (a float is a bias)")
    if (causal or window is not None) and time != source:
        raise UsageError(
            f"{'causal' if causal else 'window'} compares positions, but there are {time} queries and {source} keys; "
            "expected equally many: pass a mask instead"
        )
    if window is not None and window < 1:
        raise UsageError(f"window is {window}; expected an integer of at least 1 (1 sees only the token itself)")
    if softcap is not None and not softcap > 0:
        raise UsageError(f"softcap is {softcap}; expected a number above 0, such as 50.0, or None for no cap")
    if segment_ids is not None:
        shapes = [x.shape for x in (segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids))]
        if shapes != [(batch, time), (batch, source)]:
            raise UsageError(
                f"segment_ids have the shapes {shapes} for queries and keys; expected {(batch, time)} and "
                f"{(batch, source)}: where they differ, pass the pair (query ids, key ids)"
            )
