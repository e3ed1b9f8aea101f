"""A state that is a matrix, as in linear attention, retention, Mamba-2, the mLSTM and delta networks.

    S_t = exp(d_t) S_{t-1} + k_t v_t^T,        y_t = S_t^T q_t        (`matrix_recurrence`)

d_t <= 0 is the logarithm of a decay. The delta rule first takes away what the key k_t recalls, by the share beta_t:

    S_t = exp(d_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        (`delta_rule`)

which is a matrix recurrence of other values, u_t = beta_t (v_t - exp(d_t) S_{t-1}^T k_t). Within a chunk these solve a
triangular system, so both have the same three forms: token by token, all pairs at once, and chunk by chunk.

Sources: Katharopoulos et al. (arXiv 2006.16236), equations 16 to 20; Sun et al. (2307.08621), equations 5 to 7; Dao and
Gu (2405.21060), section 6; Yang et al. (2406.06484), section 3; Yang et al. (2412.06464), section 3.3.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.recurrence.linear import check_chunk

__all__ = ["FORMS", "MatrixState", "delta_rule", "initial_state", "matrix_recurrence"]

FORMS = ("auto", "parallel", "chunked", "recurrent")


class MatrixState(NamedTuple):
    """State carried over the current run.

    Attributes:
      s: the matrix, "batch heads dim vdim".
      last_run: the number of that run, 0 before the first, "batch".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    s: Any
    last_run: Any


def initial_state(batch: int, heads: int, dim: int, vdim: int, dtype: Any = jnp.float32) -> MatrixState:
    """The state before the first token; at least float32."""
    s = jnp.zeros((batch, heads, dim, vdim), jnp.promote_types(dtype, jnp.float32))
    return MatrixState(s, jnp.zeros((batch,), jnp.int32))


def matrix_recurrence(
    q: Float[Array, "batch time q_heads dim"],
    k: Float[Array, "batch time k_heads dim"],
    v: Float[Array, "batch time v_heads vdim"],
    log_decay: Float[Array, "batch time d_heads"] | None = None,
    *,
    run: Int[Array, "batch time"] | None = None,
    state: MatrixState | None = None,
    form: str = "auto",
    chunk: int = 64,
) -> tuple[Float[Array, "batch time heads vdim"], MatrixState]:
    """S_t = exp(d_t) S_{t-1} + k_t v_t^T and y_t = S_t^T q_t, for each head.

    All forms give the same: "parallel" has all pairs at once, O(time^2); "chunked" has those within a chunk and the
    state between chunks, O(time chunk); "recurrent" goes token by token. Arrays may have fewer heads than there are
    in all, if all those have the same number: head h of y reads head `h // (heads // n)` of an array of n.

    Args:
      q, k, v: queries, keys and values, scaled as they should be.
      log_decay: d, finite, at most 0; None is 0, which forgets nothing.
      run: only equal numbers see each other; 0 is padding, the others never decrease along a row (`ops.segments`).
      state: state after the preceding tokens; its run continues where `run` has the same number.
      form: one of `FORMS`; "auto" is recurrent for one token, parallel for no more than a chunk, and else chunked.
      chunk: tokens in a chunk, at least 1.

    Returns:
      y in v's dtype, computed in at least float32, 0 at padding; and the state after the last token.

    Raises:
      UsageError: an unknown form; `chunk` below 1; heads that can't be shared; a state of another shape.
    """
    parts, heads = _grouped(q, k, v, log_decay)
    y, after = recurrence(parts, run, state, form, chunk)
    return _flat(y, heads).astype(v.dtype), after


def delta_rule(
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch time heads dim"],
    v: Float[Array, "batch time heads vdim"],
    beta: Float[Array, "batch time heads"],
    log_decay: Float[Array, "batch time heads"] | None = None,
    *,
    run: Int[Array, "batch time"] | None = None,
    state: MatrixState | None = None,
    form: str = "auto",
    chunk: int = 64,
) -> tuple[Float[Array, "batch time heads vdim"], MatrixState]:
    """S_t = exp(d_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T and y_t = S_t^T q_t, for each head.

    With keys of norm 1, beta = 1 replaces what the key recalled, and beta in (1, 2) turns it round: such states track
    what changes sign (arXiv 2411.12537).

    Args:
      q, k, v: queries, keys and values.
      beta: the share that is rewritten.
      log_decay, run, state, form, chunk: as for `matrix_recurrence`; the parallel form solves a system of the length.

    Returns:
      As `matrix_recurrence`.

    Raises:
      UsageError: as `matrix_recurrence`.
    """
    parts, heads = _grouped(q, k, v, log_decay)
    parts = parts._replace(beta=_grouped_one(beta[..., None], heads, heads)[..., 0])
    y, after = recurrence(parts, run, state, form, chunk)
    return _flat(y, heads).astype(v.dtype), after


class Parts(NamedTuple):
    """Arrays with heads as "batch groups members time ...", where 1 member is shared by all of the group's.

    Attributes:
      q, k, v: "... dim".
      decay: d, without a last axis; None is 0.
      beta: the delta rule's, or None.
    """

    q: Any
    k: Any
    v: Any
    decay: Any = None
    beta: Any = None


def _grouped(q, k, v, decay):
    """`Parts` in at least float32, and the number of heads in all."""
    arrays = {"queries": q, "keys": k, "values": v} | ({} if decay is None else {"decays": decay[..., None]})
    numbers = [x.shape[2] for x in arrays.values()]
    heads, groups = max(numbers), min(numbers)
    if groups < 1 or heads % groups or set(numbers) - {heads, groups}:
        names = ", ".join(f"{n} of {name}" for name, n in zip(arrays, numbers))
        raise UsageError(f"heads cannot be shared among {names}; expected one number, or two of which one divides")
    q, k, v, *decays = (_grouped_one(x, heads, groups) for x in arrays.values())
    return Parts(q, k, v, decays[0][..., 0] if decays else None), heads


def _grouped_one(x, heads, groups):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    batch, time, number, last = x.shape
    members = heads // groups if number == heads else 1
    return x.reshape(batch, time, number // members, members, last).transpose(0, 2, 3, 1, 4)


def _flat(y, heads):
    """ "batch groups members time vdim" as "batch time heads vdim"."""
    return y.transpose(0, 3, 1, 2, 4).reshape(y.shape[0], y.shape[3], heads, y.shape[4])


def recurrence(
    parts: Parts,
    run: Int[Array, "batch time"] | None,
    state: MatrixState | None,
    form: str,
    chunk: int,
    feature_map: Callable | None = None,
) -> tuple[Float[Array, "batch groups members time vdim"], MatrixState]:
    """`matrix_recurrence` and `delta_rule` on `Parts`; `linear_attention` brings a map that makes features of q and k.

    The chunked form calls the map for each chunk, and again for the gradient: wide features are never kept.
    """
    if form not in FORMS:
        raise unknown("form of a matrix recurrence", form, FORMS)
    check_chunk(chunk, "a matrix recurrence")
    batch, groups, _, time, _ = parts.v.shape
    if form == "auto":
        form = "recurrent" if time == 1 else "parallel" if time <= chunk else "chunked"
    dim = parts.k.shape[-1] if feature_map is None else jax.eval_shape(feature_map, parts.q, parts.k)[1].shape[-1]
    if feature_map is not None and form != "chunked":
        q, k = feature_map(parts.q, parts.k)
        parts, feature_map = parts._replace(q=q, k=k), None
    members = max(1 if x is None else x.shape[2] for x in parts[1:])
    shape = (batch, groups * members, dim, parts.v.shape[-1])
    if state is None:
        begin = initial_state(*shape, parts.v.dtype)
        runs = jnp.ones((batch, time), jnp.int32) if run is None else run.astype(begin.last_run.dtype)
    else:
        if state.s.shape != shape:
            raise UsageError(f"the state has the shape {state.s.shape}; expected {shape}: batch, heads and head sizes")
        begin = state._replace(s=state.s.astype(parts.v.dtype))
        runs = jnp.ones((batch, time), jnp.int32) if run is None else run.astype(begin.last_run.dtype)
        runs = jnp.maximum(runs, begin.last_run[:, None]) if run is None else runs  # without ids the run continues
    begin = begin._replace(s=begin.s.reshape(batch, groups, members, *shape[2:]))
    # Padding leaves the state alone: it decays nothing, and its keys are 0.
    real = (runs > 0).astype(parts.v.dtype)[:, None, None]
    parts = parts._replace(
        decay=None if parts.decay is None else jnp.where(real > 0, parts.decay, 0),
        beta=None if parts.beta is None else parts.beta * real,
    )
    y, end = _FORMS[form](parts, runs, begin, chunk, feature_map)
    s = end.s.reshape(shape)
    return y, end._replace(s=s if state is None else s.astype(state.s.dtype))


def _parallel(parts, run, state, chunk=None, feature_map=None):
    """y "batch groups members time vdim" and the state after."""
    q, k, v, decay, beta = parts
    time = v.shape[3]
    i = jnp.arange(time)
    visible = ((i[:, None] >= i) & (run[:, :, None] == run[:, None, :]) & (run > 0)[:, :, None])[:, None, None]
    goes_on = ((run == state.last_run[:, None]) & (run > 0))[:, None, None]
    last = jnp.maximum(state.last_run, jnp.max(run, axis=1, initial=0))
    to_the_end = ((run == last[:, None]) & (run > 0))[:, None, None]
    stays = (last == state.last_run)[:, None, None]
    if decay is None:
        between, before, behind, kept = (x.astype(v.dtype) for x in (visible, goes_on, to_the_end, stays))
    else:
        # Sums of d since the run began: exp of a difference is the decay in between. As sums over what is visible they
        # owe nothing to other runs, not even a rounding error in the gradient; a cumulative sum would.
        total = jnp.sum(jnp.where(visible, decay[..., None, :], 0), axis=-1)
        end = jnp.sum(decay * to_the_end, axis=-1, keepdims=True)
        # What is not seen is hidden before the exponential.
        hidden = lambda seen, x: jnp.exp(jnp.where(seen, x, -jnp.inf))
        between = hidden(visible, total[..., :, None] - total[..., None, :])
        before, behind = hidden(goes_on, total), hidden(to_the_end, end - total)
        kept = hidden(stays, end[..., 0])
    if beta is not None:
        overlaps = jnp.einsum("bgmtf,bgmsf->bgmts", k, k) * between * (i[:, None] > i)
        recalled = jnp.einsum("bgmtf,bgmfd->bgmtd", k, state.s) * before[..., None]
        v = _unit_triangular_solve(overlaps * beta[..., None], beta[..., None] * (v - recalled))
    scores = jnp.einsum("bgmtf,bgmsf->bgmts", q, k) * between
    y = jnp.einsum("bgmts,bgmsd->bgmtd", scores, v)
    y = y + jnp.einsum("bgmtf,bgmfd->bgmtd", q, state.s) * before[..., None]
    # The factor goes to the smaller of the two, and to the one that has as many heads.
    s = jnp.einsum("bgmtf,bgmtd->bgmfd", k, v * behind[..., None]) + state.s * kept[..., None, None]
    return y, MatrixState(s, last)


def _unit_triangular_solve(lower, right):
    """x with (1 + lower) x = right, for a matrix below the diagonal."""
    return jnp.matmul(_unit_inverse(lower), right, precision=lax.Precision.HIGHEST)


@jax.custom_jvp
def _unit_inverse(lower):
    """(1 + lower)^-1 of a matrix below the diagonal, from the inverses of its diagonal blocks of 1, 2, 4, ...

    With halves A and B on the diagonal and C below, it has A^-1, B^-1 and -B^-1 C A^-1. On a CPU this takes a sixth of
    the time of XLA's triangular solve, which goes through the systems one by one.
    """
    n, outer = lower.shape[-1], lower.shape[:-2]
    size = 1 << max(n - 1, 0).bit_length()
    lower = jnp.pad(lower, [(0, 0)] * len(outer) + [(0, size - n)] * 2)
    inverse, half = jnp.ones((*outer, size, 1, 1), lower.dtype), 1  # "... blocks half half"
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    while half < size:
        pairs = size // (2 * half)
        below = lower.reshape(*outer, pairs, 2, half, pairs, 2, half)[..., 1, :, :, 0, :]
        C = jnp.moveaxis(jnp.diagonal(below, axis1=-4, axis2=-2), -1, -3)
        A, B = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        rows = ([A, jnp.zeros_like(A)], [-product(product(B, C), A), B])
        inverse = jnp.concatenate([jnp.concatenate(row, axis=-1) for row in rows], axis=-2)
        half *= 2
    return inverse[..., 0, :n, :n]


@_unit_inverse.defjvp
def _unit_inverse_jvp(primals, tangents):
    inverse, product = _unit_inverse(*primals), functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    return inverse, -product(product(inverse, tangents[0]), inverse)


def _chunked(parts, run, state, chunk, feature_map=None):
    """As `_parallel`, of what `feature_map` makes of q and k: a chunk at a time, the state in between."""
    time = parts.v.shape[3]
    chunk = min(chunk, max(time, 1))
    missing = -time % chunk  # filled with padding, which leaves the state alone

    def cut(x, axis):
        x = jnp.pad(x, [(0, missing if n == axis else 0) for n in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :]), axis, 0)

    # checkpoint: the gradient keeps the state before each chunk, and computes the pairs within it again.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(state, part):
        parts, run = part
        if feature_map is not None:
            q, k = feature_map(parts.q, parts.k)
            parts = parts._replace(q=q, k=k)
        y, state = _parallel(parts, run, state)
        return state, y

    state, y = lax.scan(one, state, (jax.tree.map(lambda x: cut(x, 3), parts), cut(run, 1)))
    return jnp.moveaxis(y, 0, 3).reshape(*y.shape[1:4], -1, y.shape[-1])[:, :, :, :time], state


def _recurrent(parts, run, state, chunk=None, feature_map=None):
    """As `_parallel`: a token at a time."""

    def one(state, token):
        (q, k, v, decay, beta), run = token  # "batch groups members dim", "batch groups members", "batch"
        real = (run > 0)[:, None, None, None, None]
        s = jnp.where(real & (run != state.last_run)[:, None, None, None, None], 0, state.s)
        k = jnp.where(real[..., 0], k, 0)
        q = jnp.where(real[..., 0], q, 0)
        if decay is not None:
            s = s * jnp.exp(decay)[..., None, None]
        if beta is not None:
            v = beta[..., None] * (v - jnp.einsum("bgmf,bgmfd->bgmd", k, s))
        s = s + k[..., None] * v[..., None, :]
        return MatrixState(s, jnp.where(run > 0, run, state.last_run)), jnp.einsum("bgmf,bgmfd->bgmd", q, s)

    along = (jax.tree.map(lambda x: jnp.moveaxis(x, 3, 0), parts), run.T)
    if parts.v.shape[3] == 1:  # decoding: a loop of one step would only add overhead
        state, y = one(state, jax.tree.map(lambda x: x[0], along))
        return y[:, :, :, None], state
    state, y = lax.scan(one, state, along)
    return jnp.moveaxis(y, 0, 3), state


_FORMS = {"parallel": _parallel, "chunked": _chunked, "recurrent": _recurrent}
