"""Softmax attention: one call for every form, chosen by platform and shape."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.ops import platform as current
from arch_jax.ops.attention.blocked import blocked_attention
from arch_jax.ops.attention.patterns import Pattern
from arch_jax.ops.attention.sparse import sparse_attention

__all__ = ["Choice", "attention", "attention_reference", "choose", "explain", "implementations"]

SegmentIds = Int[Array, "batch time"] | tuple[Int[Array, "batch time"], Int[Array, "batch source"]]
WithLogsumexp = tuple[Float[Array, "batch time heads vdim"], Float[Array, "batch heads time"]]

#: The platforms of each implementation.
PLATFORMS = {
    "reference": ("cpu", "gpu", "tpu"),
    "xla": ("cpu", "gpu", "tpu"),
    "pallas": ("gpu", "tpu"),
    "cudnn": ("gpu",),
}
KERNEL_DIM = 256  # the largest head that the Pallas kernels take


class Choice(NamedTuple):
    """The implementation that "auto" picks, and the reason as one sentence."""

    implementation: str
    reason: str


def implementations(platform: str | None = None) -> tuple[str, ...]:
    """The names that `attention(implementation=...)` takes on a platform, beside "auto".

    Args:
      platform: "cpu", "gpu" or "tpu"; None for the one that is compiled for.
    """
    platform = platform or current.platform()
    return tuple(name for name, platforms in PLATFORMS.items() if platform in platforms)


def explain(
    time: int,
    source: int,
    platform: str | None = None,
    *,
    dim: int = 64,
    dtype: jnp.dtype | type | str = jnp.float32,
    mask: bool = False,
) -> Choice:
    """The choice of `attention(implementation="auto")` for `time` queries over `source` keys, with the reason.

    Args:
      platform: "cpu", "gpu" or "tpu"; None for the one that is compiled for.
      dim: the larger of the sizes of a head's keys and values.
      dtype: of the queries.
      mask: whether a mask array is given.
    """
    platform = platform or current.platform()
    if time == 0 or source == 0:
        # Nothing to cut into blocks, and an empty sum has no maximum to subtract.
        return Choice("reference", "there are no queries or no keys, so that there is nothing to cut into blocks")
    if platform == "gpu":
        return Choice("xla", "on gpu no kernel of ours has been measured yet; ask for pallas or cudnn by name")
    if "pallas" not in implementations(platform):
        return Choice("xla", f"on {platform} it is the fast form: blocks that XLA fuses")
    if mask:
        return Choice("xla", "the Pallas kernel takes no mask; segment ids, a window or a pattern would let it")
    if dim > KERNEL_DIM:
        return Choice("xla", f"the Pallas kernel takes heads of at most {KERNEL_DIM}, and these have {dim}")
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        return Choice("xla", f"the Pallas kernel takes float32 and bfloat16, and the queries are {jnp.dtype(dtype)}")
    return Choice("pallas", f"on {platform} nothing larger than a block leaves the chip's own memory")


def choose(time: int, source: int, platform: str | None = None, **facts) -> str:
    """The name that `explain` gives for the same arguments."""
    return explain(time, source, platform, **facts).implementation


def attention(
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch source kv_heads dim"],
    v: Float[Array, "batch source kv_heads vdim"],
    *,
    mask: Bool[Array, "#batch #heads #time #source"] | None = None,
    bias: Float[Array, "#batch #heads #time #source"] | None = None,
    alibi: Float[Array, "heads"] | None = None,
    causal: bool = False,
    window: int | None = None,
    pattern: Pattern | None = None,
    segment_ids: SegmentIds | None = None,
    softcap: float | int | None = None,
    scale: float | int | None = None,
    logsumexp: bool = False,
    implementation: str = "auto",
) -> Float[Array, "batch time heads vdim"] | WithLogsumexp:
    """Scaled dot-product attention: softmax(scale q k^T + bias, over what is visible) v, for each head.

    Query head h reads kv head `h // (heads // kv_heads)`, so that kv_heads == heads is multi-head, 1 multi-query and
    anything between grouped-query attention. A pair is visible if every one of `mask`, `causal`, `window`, `pattern`
    and `segment_ids` that is given allows it. A query that sees nothing gives exactly 0, and has no gradient.

    Args:
      q, k, v: queries, keys and values; `heads` is a multiple of `kv_heads`, and v's dimension may be its own.
      mask: True where the query may attend to the key; rank 4, axes may be 1.
      bias: added to the scaled scores (-inf hides a pair); rank 4, axes may be 1. It has a gradient.
      alibi: slopes, one a head: -slope |i - j| is added to the scores of query i and key j (Press et al. 2021, arXiv
        2108.12409, section 3). No gradient passes to them.
      causal: query i sees the keys j <= i.
      window: at least 1; query i sees i - window < j and, unless causal, j < i + window.
      pattern: a rule of `ops.patterns`; "xla" and "pallas" leave out the tiles that hold no visible pair, so that time
        and memory go with the tiles kept.
      segment_ids: integers; only equal ids other than 0 (padding) see each other. One array for queries and keys, or a
        pair of them.
      softcap: c > 0 replaces the scaled scores s by c tanh(s / c), before bias and mask (Gemma 2, arXiv 2408.00118,
        section 2).
      scale: factor of q k^T; dim^-1/2 by default.
      logsumexp: whether to also return the logarithm of each query's sum of exponentiated scores.
      implementation: a name of `implementations()`, or "auto", as `explain` reports. "reference" holds every
        score at once; "xla" works in blocks of query rows, keeps only q, k and v for the gradient, and has
        reverse-mode derivatives only: take "reference" for forward mode or second derivatives. "pallas" is the kernel
        of `ops.pallas`; "cudnn" NVIDIA's, through jax, for half precision.

    Returns:
      The attended values, in q's dtype; scores and softmax are computed in at least float32. With `logsumexp` a pair
      of them and the logarithms "batch heads time" in at least float32, -inf where a query sees nothing.

    Raises:
      UsageError: an implementation that is unknown, not on this platform, or lacking what is asked for; heads that are
        no multiple of kv_heads; a mask or bias not broadcastable; `window`, `softcap`, `alibi` or `segment_ids` out of
        range; or `causal`, `window`, `pattern` or `alibi` where time and source differ.

    Source: Attention Is All You Need (arXiv 1706.03762), equation 1; grouped queries: GQA (arXiv 2305.13245), section
    2.2.
    """
    time, source = q.shape[1], k.shape[1]
    _check_name(implementation)
    _check(q, k, v, mask, bias, causal, window, segment_ids, softcap, alibi, pattern)
    if alibi is not None:
        alibi = jax.lax.stop_gradient(alibi)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    facts = {"dim": max(q.shape[-1], v.shape[-1]), "dtype": q.dtype, "mask": mask is not None}
    name = choose(time, source, **facts) if implementation == "auto" else implementation
    given = {"bias": bias, "causal": causal, "window": window, "softcap": softcap, "scale": scale}
    if name == "cudnn":
        missing = {"softcap": softcap, "alibi": alibi, "pattern": pattern, "logsumexp": logsumexp or None}
        return _cudnn(q, k, v, mask=mask, bias=bias, causal=causal, window=window, segment_ids=segment_ids,
                      scale=scale, missing=missing)  # fmt: skip
    given |= {"alibi": alibi, "logsumexp": logsumexp}
    if name == "reference" or time == 0 or source == 0:
        return attention_reference(q, k, v, mask=mask, segment_ids=segment_ids, pattern=pattern, **given)
    given["query_ids"], given["key_ids"] = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
    if name == "pallas":
        if mask is not None:
            raise UsageError('implementation="pallas" takes no mask; expected segment ids, a window, or "xla"')
        from arch_jax.ops.pallas.flash import flash_attention

        return flash_attention(q, k, v, pattern=pattern, **given)
    if pattern is not None:
        return sparse_attention(q, k, v, mask=mask, pattern=pattern, **given)
    return blocked_attention(q, k, v, mask=mask, **given)


def attention_reference(
    q,
    k,
    v,
    *,
    mask=None,
    bias=None,
    alibi=None,
    causal=False,
    window=None,
    pattern=None,
    segment_ids=None,
    softcap=None,
    scale=None,
    logsumexp=False,
):
    """The oracle for `attention`, with its arguments unchecked: the full score matrix of every head."""
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
    if alibi is not None:
        slopes = jax.lax.stop_gradient(alibi).astype(precision)
        scores_bhts = scores_bhts - slopes[None, :, None, None] * jnp.abs(i - j)
    if pattern is not None:
        visible = visible & pattern.mask(time, source)
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
    out = jnp.einsum("bhts,bshd->bthd", probabilities_bhts, v32).astype(q.dtype)
    if not logsumexp:
        return out
    # Two wheres: the logarithm of 0 would send NaN back through the one that hides it.
    logarithm = jnp.log(jnp.where(total == 0, 1, total)) + jax.lax.stop_gradient(jnp.where(total == 0, 0, largest))
    return out, jnp.where(total == 0, -jnp.inf, logarithm)[..., 0]


def _cudnn(q, k, v, *, mask, bias, causal, window, segment_ids, scale, missing):
    """NVIDIA's kernel through jax: it has no soft cap, no ALiBi, no patterns and no logsumexp."""
    asked = [name for name, value in missing.items() if value is not None]
    if asked:
        raise UsageError(f'implementation="cudnn" has no {" or ".join(asked)}; the nearest that has is "pallas"')
    if jnp.dtype(q.dtype).itemsize != 2:
        raise UsageError(f'implementation="cudnn" is given {q.dtype}; expected bfloat16 or float16, or "xla"')
    # A query that sees nothing must give 0; there the kernel would give an average of what is hidden.
    seen = None
    if segment_ids is not None or mask is not None:
        visible = True if mask is None else mask
        if segment_ids is not None:
            query_ids, key_ids = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
            query_ids, key_ids = query_ids[:, None, :, None], key_ids[:, None, None, :]
            visible = visible & (query_ids == key_ids) & (query_ids != 0)
        full = visible
        i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])
        if causal:
            full = full & (j <= i)
        if window is not None:
            full = full & (abs(i - j) < window)
        seen = jnp.any(full, axis=-1)
        seen = jnp.broadcast_to(seen, (*seen.shape[:2], q.shape[1])).swapaxes(1, 2)[..., None]
        mask = jnp.broadcast_to(visible, (*visible.shape[:2], q.shape[1], k.shape[1]))
    sides = None if window is None else (window - 1, 0 if causal else window - 1)
    out = jax.nn.dot_product_attention(
        q, k, v, bias, mask, scale=scale, is_causal=causal, local_window_size=sides, implementation="cudnn"
    )
    return out if seen is None else jnp.where(seen, out, jnp.zeros((), out.dtype))


def _check_name(implementation):
    if implementation != "auto" and implementation not in PLATFORMS:
        raise unknown("implementation of attention", implementation, (*PLATFORMS, "auto"))
    platform = current.platform()
    if implementation != "auto" and implementation not in implementations(platform):
        raise UsageError(
            f"implementation of attention {implementation!r} does not exist on {platform}, only on "
            f'{" and ".join(PLATFORMS[implementation])}; the nearest here is "xla"'
        )


def _check(q, k, v, mask, bias, causal, window, segment_ids, softcap, alibi=None, pattern=None):
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
    comparing = {"causal": causal or None, "window": window, "pattern": pattern, "alibi": alibi}
    comparing = [name for name, value in comparing.items() if value is not None]
    if comparing and time != source:
        raise UsageError(
            f"{comparing[0]} compares positions, but there are {time} queries and {source} keys; expected equally "
            f"many: pass a {'bias' if comparing[0] == 'alibi' else 'mask'} instead"
        )
    if alibi is not None and alibi.shape != (heads,):
        raise UsageError(f"alibi has the shape {alibi.shape}; expected one slope for each of the heads, ({heads},)")
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
