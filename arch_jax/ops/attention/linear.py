"""Linear attention: a product of features replaces the softmax, and its sums are shared by all queries.

    out_i = sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j)

over the j that i sees. The features are the caller's: `elu_features`, or those of `ops.random_features`. Time and
memory grow with the length, not with its square, and what a causal layer carries from token to token has a fixed size.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.attention.dot_product import attention
from arch_jax.ops.recurrence.linear import check_chunk
from arch_jax.ops.recurrence.matrix import FORMS, MatrixState, Parts, recurrence

__all__ = ["FORMS", "LinearState", "elu_features", "initial_state", "linear_attention", "low_rank_attention"]

FeatureMap = Callable[[Array, Array], tuple[Array, Array]]


class LinearState(NamedTuple):
    """The sums over the current run.

    Attributes:
      s: of phi(k) v^T, "batch heads features vdim".
      z: of phi(k), "batch heads features".
      last_run: the number of that run, 0 before the first, "batch".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    s: Any
    z: Any
    last_run: Any


def elu_features(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """phi(x) = elu(x) + 1, positive, in at least float32 (Katharopoulos et al. 2020, 2006.16236, equation 7)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # exp(x) of a large x would be infinite, and infinity times the 0 of the branch not taken is NaN in the gradient.
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


def initial_state(batch: int, heads: int, features: int, vdim: int, dtype: Any = jnp.float32) -> LinearState:
    """The state before the first token; at least float32."""
    precise = jnp.promote_types(dtype, jnp.float32)
    shape = (batch, heads, features)
    return LinearState(jnp.zeros((*shape, vdim), precise), jnp.zeros(shape, precise), jnp.zeros((batch,), jnp.int32))


def linear_attention(
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch source kv_heads dim"],
    v: Float[Array, "batch source kv_heads vdim"],
    *,
    feature_map: FeatureMap | None = None,
    causal: bool = True,
    run: Int[Array, "batch time"] | None = None,
    state: LinearState | None = None,
    form: str = "auto",
    chunk: int = 64,
) -> tuple[Float[Array, "batch time heads vdim"], LinearState | None]:
    """sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j) over the j that i sees.

    All forms give the same: "parallel" has all pairs at once, O(time^2); "chunked" has those within a chunk and a state
    between chunks, O(time chunk); "recurrent" goes token by token. Query head h reads kv head
    `h // (heads // kv_heads)`. Where the denominator is 0 the output is 0.

    Args:
      q, k: queries and keys, or their features (none negative) where no `feature_map` is given.
      v: values.
      feature_map: (q, k) -> (phi(q), phi(k)), over the last axis of arrays of any rank. The chunked form calls it for
        each chunk, and again for the gradient, so that features wider than the heads are never kept.
      causal: whether i sees the j <= i only; else all, and there is no state ("recurrent" is then "chunked").
      run: only equal numbers see each other; 0 is padding, the others never decrease along a row (`ops.segments`).
      state: state after the preceding tokens; its run continues where `run` has the same number.
      form: one of `FORMS`; "auto" is recurrent for one token, parallel for no more than a chunk, and else chunked.
      chunk: tokens in a chunk, at least 1.

    Returns:
      The attended values in v's dtype, computed in at least float32, and the state after the last token (None unless
      causal).

    Raises:
      UsageError: an unknown form; `chunk` below 1; heads that are no multiple of kv_heads; a state without `causal`;
        `causal` or `run` where time and source differ.

    Source: Transformers are RNNs (arXiv 2006.16236), equations 4, 5 (not causal) and 8 to 12, 16 to 20 (causal).
    """
    (batch, time, heads, dim), (source, kv_heads, vdim) = q.shape, v.shape[1:]
    if form not in FORMS:
        raise unknown("form of linear attention", form, FORMS)
    check_chunk(chunk, "linear attention")
    if kv_heads < 1 or heads % kv_heads:
        near = min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(n - kv_heads))
        raise UsageError(
            f"{heads} query heads cannot share {kv_heads} kv heads; the nearest number that does is {near}"
        )
    if state is not None and not causal:
        raise UsageError("linear attention was given a state with causal=False; expected causal=True")
    if (causal or run is not None) and time != source:
        raise UsageError(
            f"linear attention compares positions, but there are {time} queries and {source} keys; expected as many, "
            "or causal=False without runs"
        )
    precise = jnp.promote_types(q.dtype, jnp.float32)
    q_bkgtf = q.astype(precise).reshape(batch, time, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
    k_bktf, v_bktd = (x.astype(precise).transpose(0, 2, 1, 3) for x in (k, v))
    # The denominator is the sum of a value that is 1 everywhere.
    v_bktd = jnp.concatenate([v_bktd, jnp.ones_like(v_bktd[..., :1])], axis=-1)
    if causal:
        carried = None
        if state is not None:
            carried = MatrixState(jnp.concatenate([state.s, state.z[..., None]], axis=-1), state.last_run)
        parts = Parts(q_bkgtf, k_bktf[:, :, None], v_bktd[:, :, None])
        sums, end = recurrence(parts, run, carried, form, chunk, feature_map)
        end = LinearState(end.s[..., :-1], end.s[..., -1], end.last_run)
    else:
        end = None
        if feature_map is not None:
            q_bkgtf, k_bktf = feature_map(q_bkgtf, k_bktf)
        sums = _bidirectional(q_bkgtf, k_bktf, v_bktd, run, form, chunk)
    above, below = sums[..., :-1], sums[..., -1:]
    out = above / jnp.where(below == 0, 1, below)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, vdim).astype(v.dtype), end


def _bidirectional(q, k, v, run, form, chunk):
    """Sums "batch kv group time vdim" where everything of the same run is seen."""
    if form == "parallel" or (form == "auto" and q.shape[3] <= chunk):
        a = jnp.einsum("bkgtf,bksf->bkgts", q, k)
        if run is not None:
            same = (run[:, :, None] == run[:, None, :]) & (run > 0)[:, :, None]
            a = a * same[:, None, None].astype(a.dtype)
        return jnp.einsum("bkgts,bksd->bkgtd", a, v)
    if run is None:
        return jnp.einsum("bkgtf,bkfd->bkgtd", q, jnp.einsum("bksf,bksd->bkfd", k, v))
    # What lies after, and what lies ahead: the second is the first of the row read from its end. Both hold the token.
    back = functools.partial(jnp.flip, axis=-2)
    reverse = jnp.where(run > 0, jnp.max(run, axis=1, keepdims=True, initial=0) + 1 - run, 0)
    parts = Parts(q, k[:, :, None], v[:, :, None])
    behind, _ = recurrence(parts, run, None, "chunked", chunk)
    ahead, _ = recurrence(Parts(*map(back, parts[:3])), jnp.flip(reverse, axis=1), None, "chunked", chunk)
    own = jnp.einsum("bkgtf,bktf->bkgt", q, k) * (run > 0).astype(q.dtype)[:, None, None]
    return behind + back(ahead) - own[..., None] * v[:, :, None]


def low_rank_attention(
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch source kv_heads dim"],
    v: Float[Array, "batch source kv_heads vdim"],
    e: Float[Array, "rank length"],
    f: Float[Array, "rank length"],
    *,
    run: Int[Array, "batch time"] | None = None,
    position: Int[Array, "batch time"] | None = None,
    scale: float | int | None = None,
) -> Float[Array, "batch time heads vdim"]:
    """softmax(scale q (E k)^T) (F v): keys and values mixed along the sequence into `rank` of each.

    With E = F = 1 it is full attention. Not causal: every mixture holds every position.

    Args:
      e, f: mixing matrices of the positions, of keys and of values; of a shorter sequence, their first columns.
      run, position: packed sequences, as `ops.segments` counts them: a sequence of its own for each number, 0 is
        padding. Each run has its own mixtures, so that this form takes time and memory of the length squared.
      scale: factor of q (E k)^T; dim^-1/2 by default.

    Returns:
      The attended values, in q's dtype; 0 for padding.

    Raises:
      UsageError: more positions than `e` and `f` have columns, or only one of `run` and `position`. (A run that is too
        long for them gives NaN.)

    Source: Linformer (arXiv 2006.04768), equation 7.
    """
    source, length = k.shape[1], e.shape[1]
    if run is None and source > length:
        raise UsageError(f"low-rank attention was given {source} positions; expected at most {length}, its length")
    if (run is None) != (position is None):
        raise UsageError("low-rank attention was given one of run and position; expected both or none")
    precise = jnp.promote_types(k.dtype, jnp.float32)
    e, f = e.astype(precise), f.astype(precise)
    if run is None:
        mixed = lambda weights, x: jnp.einsum("rs,bshd->brhd", weights[:, :source], x.astype(precise)).astype(x.dtype)
        return attention(q, mixed(e, k), mixed(f, v), scale=scale)
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x.astype(precise), group, axis=2) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    e, f = (jnp.take(x, position, axis=1, mode="fill", fill_value=jnp.nan) for x in (e, f))
    same = ((run[:, :, None] == run[:, None, :]) & (run > 0)[:, :, None]).astype(precise)[:, None]
    pairs_bhts = jnp.einsum("bthd,bshd->bhts", q.astype(precise), k) * scale * same
    weights_bhtr = jax.nn.softmax(jnp.einsum("bhts,rbs->bhtr", pairs_bhts, e), axis=-1)
    back_bhts = jnp.einsum("bhtr,rbs->bhts", weights_bhtr, f) * same
    return jnp.einsum("bhts,bshd->bthd", back_bhts, v).astype(q.dtype)
