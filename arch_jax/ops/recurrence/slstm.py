"""The sLSTM: scalar cells with exponential input gates, a normaliser, and recurrent weights within each head.

    i~, f~, z~, o~ = x_t + h_{t-1} R                                  (R: a block for each head)
    c_t = f_t c_{t-1} + i_t tanh(z~),   n_t = f_t n_{t-1} + i_t,   h_t = sigmoid(o~) c_t / n_t

with i_t = exp(i~) and f_t = sigmoid(f~) (Beck et al. 2024, 2405.04517, equations 8 to 18). i_t overflows, so c and n
are kept times exp(-m_t), m_t = max(log f_t + m_{t-1}, i~_t), which cancels in c_t / n_t.

h_{t-1} enters the gates, so the tokens have to be taken one after another. The gradient is written by hand around that
of one step: it keeps what the cells held, forms all gates again in one product, and R's gradient in another, where
automatic differentiation would add up a matrix at every token.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from arch_jax.errors import UsageError

__all__ = ["SLSTMState", "initial_state", "slstm", "slstm_reference"]


class SLSTMState(NamedTuple):
    """Recurrent state, each array "batch heads dim".

    Attributes:
      h: the output at the last token.
      c: the cells, times exp(-m).
      n: the normaliser, times exp(-m); at least 1, but 0 before the first token.
      m: the stabiliser; 0 before the first token.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    h: Any
    c: Any
    n: Any
    m: Any


def initial_state(batch: int, heads: int, dim: int, dtype: Any = jnp.float32) -> SLSTMState:
    """The state before the first token; at least float32."""
    return SLSTMState(*4 * (jnp.zeros((batch, heads, dim), jnp.promote_types(dtype, jnp.float32)),))


def slstm(
    x: Float[Array, "batch time heads 4 dim"],
    r: Float[Array, "heads dim 4 dim"],
    *,
    starts: Bool[Array, "batch time"] | None = None,
    real: Bool[Array, "batch time"] | None = None,
    state: SLSTMState | None = None,
) -> tuple[Float[Array, "batch time heads dim"], SLSTMState]:
    """h_t of every token, and the state after the last.

    Gradients treat m as a constant, since nothing depends on it.

    Args:
      x: the input's contribution to the four gates, bias included, in the order i~, f~, z~, o~.
      r: R, from each cell of a head to the four gates of each.
      starts: tokens before which the state is reset; None resets nowhere.
      real: tokens that are no padding, which leaves the state alone; None for all.
      state: state after the preceding tokens.

    Returns:
      h in x's dtype, computed in at least float32, 0 at padding; and the state after the last token.

    Raises:
      UsageError: a state of another shape.
    """
    batch, time, heads, _, dim = x.shape
    if state is not None and state.h.shape != (batch, heads, dim):
        raise UsageError(
            f"the state of the sLSTM has the shape {state.h.shape}; expected {(batch, heads, dim)}: batch, heads, cells"
        )
    precise = jnp.promote_types(x.dtype, jnp.float32)
    begin = initial_state(batch, heads, dim, precise) if state is None else state
    # Heads come first: each has a matrix of its own, and the product of a step is then one for all of them.
    inner = SLSTMState(*(part.astype(precise).swapaxes(0, 1) for part in begin))
    gates = x.astype(precise).transpose(1, 2, 0, 3, 4)
    fill = lambda mask, value: jnp.full((batch, time), value) if mask is None else mask
    h, end = _slstm(gates, r.astype(precise), fill(starts, False).T, fill(real, True).T, inner)
    after = SLSTMState(*(new.swapaxes(0, 1).astype(old.dtype) for new, old in zip(end, begin)))
    return h.transpose(2, 0, 1, 3).astype(x.dtype), after


def _cell(gates, c, n, m):
    """(h, c, n, m) after a token, from its four gates "heads batch 4 dim" and the state before it."""
    i, f, z, o = (gates[..., gate, :] for gate in range(4))
    fresh, log_f = n == 0, jax.nn.log_sigmoid(f)
    later = lax.stop_gradient(jnp.where(fresh, i, jnp.maximum(i, log_f + m)))
    i, f = jnp.exp(i - later), jnp.exp(jnp.where(fresh, -jnp.inf, log_f + m - later))
    c, n = f * c + i * jnp.tanh(z), f * n + i
    return jax.nn.sigmoid(o) * c / n, c, n, later


def _heard(h, r):
    """The recurrent contribution of the cells' outputs "... heads batch dim" to the gates, "... heads batch 4 dim"."""
    return jnp.einsum("...hbd,hdge->...hbge", h, r)


@jax.custom_vjp
def _slstm(x, r, starts, real, state):
    """h "time heads batch dim" and the state after, of x "time heads batch 4 dim"."""
    return _forward(x, r, starts, real, state)[0]


def _forward(x, r, starts, real, state):
    def step(state, now):
        x, starts, real = now
        keep = ~starts[None, :, None]
        state = SLSTMState(*(jnp.where(keep, part, 0) for part in state))
        h, c, n, m = _cell(x + _heard(state.h, r), *state[1:])
        now = real[None, :, None]
        after = SLSTMState(*(jnp.where(now, new, old) for new, old in zip((h, c, n, m), state)))
        return after, (after, jnp.where(now, h, 0))

    end, (held, h) = lax.scan(step, state, (x, starts, real))
    return (h, end), (x, r, starts, real, state, held)


def _backward(saved, given):
    x, r, starts, real, state, held = saved
    dh_out, end = given
    keep = ~starts[:, None, :, None]
    before = SLSTMState(
        *(jnp.where(keep, jnp.concatenate([first[None], later[:-1]]), 0) for first, later in zip(state, held))
    )
    gates = x + _heard(before.h, r)

    def step(carry, now):
        dh, dc, dn = carry
        gates, c, n, m, dh_out, keep, real = now
        _, back = jax.vjp(lambda gates, c, n: _cell(gates, c, n, m)[:3], gates, c, n)
        real = real[None, :, None]
        only_real = lambda d: jnp.where(real, d, 0)
        d_gates, dc_before, dn_before = back((only_real(dh + dh_out), only_real(dc), only_real(dn)))
        dh_before = jnp.einsum("hbge,hdge->hbd", d_gates, r)
        passed = zip((dh_before, dc_before, dn_before), (dh, dc, dn))
        return tuple(jnp.where(keep, jnp.where(real, new, old), 0) for new, old in passed), d_gates

    along = (gates, *before[1:], dh_out, keep, real)
    (dh, dc, dn), d_gates = lax.scan(step, (end.h, end.c, end.n), along, reverse=True)
    dr = jnp.einsum("thbd,thbge->hdge", before.h, d_gates)
    return d_gates, dr, None, None, SLSTMState(dh, dc, dn, jnp.zeros_like(state.m))


_slstm.defvjp(_forward, _backward)


def slstm_reference(x, r, starts=None, real=None):
    """`slstm` of whole rows as it is defined, token by token, without the stabiliser: i~ has to stay small."""
    batch, time, heads, _, dim = x.shape
    starts = jnp.zeros((batch, time), bool) if starts is None else starts
    real = jnp.ones((batch, time), bool) if real is None else real

    def step(state, token):
        x, starts, real = token
        h, c, n = (jnp.where(starts[:, None, None], 0, part) for part in state)
        i, f, z, o = jnp.moveaxis(x + jnp.einsum("bhd,hdge->bhge", h, r), 2, 0)
        i, f = jnp.exp(i), jax.nn.sigmoid(f)
        later_c, later_n = f * c + i * jnp.tanh(z), f * n + i
        later_h = jax.nn.sigmoid(o) * later_c / later_n
        now = real[:, None, None]
        state = tuple(jnp.where(now, new, old) for new, old in ((later_h, h), (later_c, c), (later_n, n)))
        return state, jnp.where(now, later_h, 0)

    along = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (x, starts, real))
    return jnp.moveaxis(lax.scan(step, 3 * (jnp.zeros((batch, heads, dim), x.dtype),), along)[1], 0, 1)
