"""The mLSTM: a matrix memory with exponential input gates, kept within range by a running maximum.

    C_t = f_t C_{t-1} + i_t k_t v_t^T,   n_t = f_t n_{t-1} + i_t k_t,   h_t = C_t^T q_t / max(|n_t . q_t|, 1)

with i_t = exp(i~_t) and f_t = sigmoid(f~_t) (Beck et al. 2024, 2405.04517, equations 19 to 27). i_t overflows, so C
and n are kept multiplied by exp(-m_t), with m_t = max(log f_t + m_{t-1}, i~_t) (equation 15). What is kept obeys

    C'_t = exp(log f_t + m_{t-1} - m_t) C'_{t-1} + exp(i~_t - m_t) k_t v_t^T

whose factors are at most 1: a matrix recurrence with decay, of which n' is one more column, that of values 1. So the
stabiliser is all there is to add to `ops.matrix_recurrence` and its three forms.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.ops.recurrence import matrix as ops

__all__ = ["MLSTMState", "initial_state", "mlstm", "mlstm_reference"]


class MLSTMState(NamedTuple):
    """State carried over the current run.

    Attributes:
      s: C and, as its last column, n, both times exp(-m), "batch heads dim vdim+1".
      m: the stabiliser, "batch heads"; 0 before the first token.
      last_run: the number of that run, 0 before the first, "batch".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    s: Any
    m: Any
    last_run: Any


def initial_state(batch: int, heads: int, dim: int, vdim: int, dtype: Any = jnp.float32) -> MLSTMState:
    """The state before the first token; at least float32."""
    begin = ops.initial_state(batch, heads, dim, vdim + 1, dtype)
    return MLSTMState(begin.s, jnp.zeros((batch, heads), begin.s.dtype), begin.last_run)


# Inlined, so that nothing changes in the program; but a model of many layers traces it once, not once a layer.
@functools.partial(jax.jit, static_argnames=("form", "chunk", "epsilon"), inline=True)
def mlstm(
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch time heads dim"],
    v: Float[Array, "batch time heads vdim"],
    input_gate: Float[Array, "batch time heads"],
    forget_gate: Float[Array, "batch time heads"],
    *,
    run: Int[Array, "batch time"] | None = None,
    state: MLSTMState | None = None,
    form: str = "auto",
    chunk: int = 64,
    epsilon: float | int = 0.0,
) -> tuple[Float[Array, "batch time heads vdim"], MLSTMState]:
    """h_t = C_t^T q_t / max(|n_t . q_t|, 1), for each head.

    All forms give the same. Gradients treat m as a constant, since nothing depends on it.

    Args:
      q, k, v: queries, keys and values, scaled as they should be.
      input_gate, forget_gate: i~ and f~, before the exponential and the sigmoid.
      run: only equal numbers see each other; 0 is padding, the others never decrease along a row (`ops.segments`).
      state: state after the preceding tokens; its run continues where `run` has the same number.
      form, chunk: as for `ops.matrix_recurrence`.
      epsilon: added to the denominator of the stabilised quotient, as the authors' code does with 1e-6.

    Returns:
      h in v's dtype, computed in at least float32, 0 at padding; and the state after the last token.

    Raises:
      UsageError: an unknown form; `chunk` below 1; a state of another shape.
    """
    batch, time, heads, dim = k.shape
    precise = jnp.promote_types(v.dtype, jnp.float32)
    begin = initial_state(batch, heads, dim, v.shape[-1], precise)
    if state is not None:
        if (state.s.shape, state.m.shape) != (begin.s.shape, begin.m.shape):
            raise UsageError(
                f"the state of the mLSTM has the shape {state.s.shape}; expected {begin.s.shape}: batch, heads, dim, "
                "vdim + 1"
            )
        begin = state
    i = input_gate.astype(precise)
    log_f = jax.nn.log_sigmoid(forget_gate.astype(precise))
    before, m = _stabiliser(*lax.stop_gradient((log_f, i)), run, lax.stop_gradient(begin.m), begin.last_run)
    values = jnp.concatenate([v.astype(precise), jnp.ones((*v.shape[:-1], 1), precise)], axis=-1)
    y, end = ops.matrix_recurrence(
        q.astype(precise),
        k.astype(precise) * jnp.exp(i - m)[..., None],
        values,
        log_f + before - m,
        run=run,
        state=None if state is None else ops.MatrixState(state.s, state.last_run),
        form=form,
        chunk=chunk,
    )
    h = y[..., :-1] / (jnp.maximum(jnp.abs(y[..., -1:]), jnp.exp(-m)[..., None]) + epsilon)
    last = m[:, -1] if time else begin.m
    return h.astype(v.dtype), MLSTMState(end.s, last.astype(begin.m.dtype), end.last_run)


def _stabiliser(log_f, i, run, m, last_run):
    """m_{t-1} and m_t "batch time heads"; a run begins with 0, and padding leaves it unchanged."""
    m = m.astype(i.dtype)
    if not i.shape[1]:
        return i, i
    starts = jnp.zeros((*i.shape[:2], 1), bool)
    if run is not None:
        latest = lax.cummax(jnp.concatenate([last_run[:, None].astype(run.dtype), run], axis=1), axis=1)
        starts = ((run > 0) & (run != latest[:, :-1]))[..., None]
        real = (run > 0)[..., None]
        log_f, i = jnp.where(real, log_f, 0), jnp.where(real, i, -jnp.inf)
    # m_t = max(a + m_0, b) of every interval of tokens has the same form: two intervals make one.
    joined = lambda one, two: (one[0] + two[0], jnp.maximum(one[1] + two[0], two[1]))
    a, b = lax.associative_scan(
        joined, (jnp.where(starts, -jnp.inf, log_f), jnp.where(starts, jnp.maximum(log_f, i), i)), axis=1
    )
    after = jnp.maximum(a + m[:, None], b)
    return jnp.where(starts, 0, jnp.concatenate([m[:, None], after[:, :-1]], axis=1)), after


def mlstm_reference(q, k, v, input_gate, forget_gate, run=None, epsilon=0.0):
    """`mlstm` of whole rows as it is defined, token by token, without the stabiliser: i~ has to stay small.

    m is followed for `epsilon` alone, which the code adds to what the stabiliser scaled.
    """
    (batch, _, heads, dim), vdim = k.shape, v.shape[-1]
    run = jnp.ones(k.shape[:2], jnp.int32) if run is None else run

    def step(carry, token):
        c, n, m, last = carry
        q, k, v, i, f, run = token
        real = (run > 0)[:, None, None, None]
        keep = ~(real & (run != last)[:, None, None, None])
        c, n, m = c * keep, n * keep[..., 0], m * keep[..., 0, 0]
        later_m = jnp.maximum(jax.nn.log_sigmoid(f) + m, i)
        i, f = jnp.exp(i)[..., None], jax.nn.sigmoid(f)[..., None]
        later_c = f[..., None] * c + (i * k)[..., None] * v[..., None, :]
        later_n = f * n + i * k
        c, n = jnp.where(real, later_c, c), jnp.where(real[..., 0], later_n, n)
        m, last = jnp.where(real[..., 0, 0], later_m, m), jnp.where(run > 0, run, last)
        recalled, total = jnp.einsum("bhdv,bhd->bhv", c, q), jnp.einsum("bhd,bhd->bh", n, q)
        below = jnp.maximum(jnp.abs(total), 1) + epsilon * jnp.exp(lax.stop_gradient(m))
        return (c, n, m, last), jnp.where(real[..., 0], recalled / below[..., None], 0)

    zeros = lambda *shape: jnp.zeros((batch, heads, *shape), v.dtype)
    begin = (zeros(dim, vdim), zeros(dim), zeros(), jnp.zeros((batch,), run.dtype))
    along = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, input_gate, forget_gate, run))
    return jnp.moveaxis(lax.scan(step, begin, along)[1], 0, 1)
