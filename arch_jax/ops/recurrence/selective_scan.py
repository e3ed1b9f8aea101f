"""The selective scan of Mamba: a diagonal state space whose step size, input and output depend on the token.

    h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t x_t
    y_t = C_t h_t + D x_t

Each channel d of x has a state h of its own, of N numbers, and a step Delta_t[d] > 0; B_t and C_t, of N numbers, are
shared by the channels; A[d, n] < 0. The exponential is the zero-order hold of A; that of B is simplified to Delta B.

The states of all tokens together, "batch time state channels", would be N times as large as x. They are never kept: the
gradient has the state before each chunk and goes through the chunk a second time. Forward and backward, 4 x 256 tokens
of 256 channels with 16 numbers take 15 ms on two CPU cores (of which forward 3), the scan that JAX differentiates 76,
and an associative scan within chunks of 64 tokens 97.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, equations 1, 2
and 4, algorithm 2 and section 3.3.2.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.platform import platform
from arch_jax.ops.recurrence.linear import check_chunk

__all__ = ["FORMS", "ScanState", "initial_state", "selective_scan", "selective_scan_reference"]

FORMS = ("auto", "recurrent", "chunked", "associative")


class ScanState(NamedTuple):
    """State carried over the current run.

    Attributes:
      h: the states of all channels, "batch state channels".
      last_run: the number of that run, 0 before the first, "batch".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    h: Any
    last_run: Any


class _Tokens(NamedTuple):
    """Inputs of the scan, time first; `keep` is 0 where a run begins and else 1, or None for all 1."""

    x: Any  # "time batch channels"
    delta: Any
    B: Any  # "time batch state"
    C: Any
    keep: Any  # "time batch"


def initial_state(batch: int, state: int, channels: int, dtype: Any = jnp.float32) -> ScanState:
    """The state before the first token; at least float32."""
    h = jnp.zeros((batch, state, channels), jnp.promote_types(dtype, jnp.float32))
    return ScanState(h, jnp.zeros((batch,), jnp.int32))


def selective_scan(
    x: Float[Array, "batch time channels"],
    delta: Float[Array, "batch time channels"],
    A: Float[Array, "channels state"],
    B: Float[Array, "batch time state"],
    C: Float[Array, "batch time state"],
    D: Float[Array, "channels"] | None = None,
    *,
    run: Int[Array, "batch time"] | None = None,
    state: ScanState | None = None,
    form: str = "auto",
    chunk: int = 32,
) -> tuple[Float[Array, "batch time channels"], ScanState]:
    """h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t x_t and y_t = C_t h_t + D x_t, for each channel.

    All forms give the same. "recurrent" goes token by token, and JAX differentiates it. "chunked" and "associative"
    have a gradient of their own, which keeps the states between chunks only; within a chunk they go token by token or
    in log(chunk) steps. Reverse-mode derivatives only.

    Args:
      x: the input.
      delta: step sizes, at least 0.
      A: at most 0.
      B: input projection, of x into the states.
      C: output projection, of the states.
      D: skip connection of x; None disables it.
      run: only equal numbers see each other; 0 is padding, the others never decrease along a row (`ops.segments`).
      state: state after the preceding tokens; its run continues where `run` has the same number.
      form: one of `FORMS`; "auto" is recurrent for one token, and else chunked on a CPU and associative elsewhere.
      chunk: tokens in a chunk, at least 1.

    Returns:
      y in x's dtype, computed in at least float32, 0 at padding; and the state after the last token.

    Raises:
      UsageError: an unknown form; `chunk` below 1; a state of another shape.

    Source: arXiv 2312.00752, algorithm 2.
    """
    if form not in FORMS:
        raise unknown("form of a selective scan", form, FORMS)
    check_chunk(chunk, "a selective scan")
    batch, time, channels = x.shape
    size = (batch, A.shape[1], channels)
    if state is not None and state.h.shape != size:
        raise UsageError(f"the state has the shape {state.h.shape}; expected {size}: batch, state size and channels")
    if form == "auto":
        form = "recurrent" if time == 1 else "chunked" if platform() == "cpu" else "associative"
    precise = jnp.promote_types(jnp.result_type(x, delta, A, B, C), jnp.float32)
    begin = initial_state(*size, precise) if state is None else state
    keep, real, last_run = None, None, jnp.maximum(begin.last_run, 1)  # without ids the run continues
    if run is not None:
        run = run.astype(begin.last_run.dtype)
        real = (run > 0)[..., None]
        latest = lax.cummax(jnp.concatenate([begin.last_run[:, None], run], axis=1), axis=1)
        keep = (~((run > 0) & (run != latest[:, :-1]))).astype(precise)
        delta, last_run = jnp.where(real, delta, 0), latest[:, -1]  # a step of 0 leaves the state alone
    if time == 0:
        return x, begin
    given = _Tokens(x, delta, B, C, keep)
    tokens = jax.tree.map(lambda array: array.astype(precise).swapaxes(0, 1), given)
    y, h = _FORMS[form](chunk, tokens, A.T.astype(precise), begin.h.astype(precise))
    y = y.swapaxes(0, 1)
    if D is not None:
        y = y + x * D.astype(precise)
    if real is not None:
        y = jnp.where(real, y, 0)
    return y.astype(x.dtype), ScanState(h.astype(begin.h.dtype), last_run)


def selective_scan_reference(
    x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any = None, run: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """`selective_scan` as it is defined: row by row and token by token, in Python.

    Returns:
      y "batch time channels" and the last states "batch channels state".
    """
    x, delta, A, B, C = (np.asarray(array) for array in (x, delta, A, B, C))
    D = np.zeros(x.shape[2]) if D is None else np.asarray(D)
    run = np.ones(x.shape[:2], int) if run is None else np.asarray(run)
    y, h = np.zeros(x.shape, x.dtype), np.zeros((x.shape[0], *A.shape), x.dtype)
    for b in range(x.shape[0]):
        last = 0
        for t in range(x.shape[1]):
            if run[b, t] == 0:
                continue
            if run[b, t] != last:
                h[b], last = 0, run[b, t]
            A_bar = np.exp(delta[b, t, :, None] * A)
            B_bar = delta[b, t, :, None] * B[b, t]
            h[b] = A_bar * h[b] + B_bar * x[b, t, :, None]
            y[b, t] = h[b] @ C[b, t] + D * x[b, t]
    return y, h


def _step(A, h, token):
    """The state after a token, "batch state channels", and C h "batch channels"."""
    x, delta, B, C, keep = token
    a = jnp.exp(delta[:, None] * A)
    a = a if keep is None else a * keep[:, None, None]
    h = a * h + B[..., None] * (delta * x)[:, None]
    return h, jnp.sum(C[..., None] * h, axis=1)


def _recurrent(chunk, tokens, A, h):
    """y "time batch channels" and the last state, as it is defined."""
    step = functools.partial(_step, A)
    if len(tokens.x) == 1:  # decoding: a loop of one step would only add overhead
        h, y = step(h, jax.tree.map(lambda array: array[0], tokens))
        return y[None], h
    h, y = lax.scan(step, h, tokens)
    return y, h


# A form goes through one chunk: forwards, to y and the state after it; and backwards, from the gradients of both to
# those of everything that goes in. The states before each token exist within the chunk only.


def _sequential_forward(A, h, tokens):
    h, y = lax.scan(functools.partial(_step, A), h, tokens)
    return y, h


def _sequential_backward(A, h, tokens, dy, g):
    _, before = lax.scan(lambda h, token: (_step(A, h, token)[0], h), h, tokens)

    def back(carry, now):
        g, dA = carry
        token, h, dy = now
        grads, exponents, g = _token_gradients(A, token, h, dy, g)
        return (g, dA + jnp.sum(exponents, axis=0)), grads

    (g, dA), grads = lax.scan(back, (g, jnp.zeros_like(A)), (tokens, before, dy), reverse=True)
    return dA, g, grads


def _token_gradients(A, token, h, dy, g):
    """Of one token, or of many with time in front: from h before it and the gradient g of the state after it.

    Returns the token's gradients, those of A still apart for each row, and the gradient of h.
    """
    x, delta, B, C, keep = token
    wide = lambda array: array[..., None, :]  # over the state
    long = lambda array: array[..., :, None]  # over the channels
    a = jnp.exp(wide(delta) * A)
    a = a if keep is None else a * keep[..., None, None]
    ah, dx = a * h, delta * x
    g = g + long(C) * wide(dy)
    # Sums along the last axis are products: on a CPU they take 0.85 of the whole time so.
    over_channels = functools.partial(jnp.einsum, "...nd,...d->...n", precision=lax.Precision.HIGHEST)
    dC = over_channels(ah, dy) + B * jnp.sum(dx * dy, axis=-1, keepdims=True)
    dB = over_channels(g, dx)
    of_dx = jnp.sum(g * long(B), axis=-2)
    exponents = g * ah  # of the gradient with respect to Delta A
    ddelta = jnp.sum(exponents * A, axis=-2) + of_dx * x
    d_keep = None if keep is None else jnp.zeros_like(keep)
    return _Tokens(of_dx * delta, ddelta, dB, dC, d_keep), exponents * wide(delta), a * g


def _associative_states(A, h, tokens):
    """a and the states after all tokens of a chunk, "time batch state channels"."""
    x, delta, B, _, keep = tokens
    a = jnp.exp(delta[:, :, None] * A)
    a = a if keep is None else a * keep[..., None, None]
    b = B[..., None] * (delta * x)[:, :, None]
    b = b.at[0].add(a[0] * h)
    return a, lax.associative_scan(_combined, (a, b))[1]


def _combined(early, late):
    """Two consecutive intervals as one: h -> a h + b."""
    (a, b), (c, d) = early, late
    return a * c, b * c + d


def _associative_forward(A, h, tokens):
    _, states = _associative_states(A, h, tokens)
    return jnp.sum(tokens.C[..., None] * states, axis=2), states[-1]


def _associative_backward(A, h, tokens, dy, g):
    a, states = _associative_states(A, h, tokens)
    before = jnp.concatenate([h[None], states[:-1]])
    # What reaches the state after token t from later ones: g_t = a_{t+1} (g_{t+1} + C_{t+1} dy_{t+1}), from the end.
    later = a[1:] * (tokens.C[..., None] * dy[:, :, None])[1:]
    first = (jnp.ones_like(g)[None], g[None])
    pairs = (jnp.concatenate([x, jnp.flip(y, 0)]) for x, y in zip(first, (a[1:], later)))
    gs = jnp.flip(lax.associative_scan(_combined, tuple(pairs))[1], 0)
    grads, exponents, g = _token_gradients(A, tokens, before, dy, gs)
    return jnp.sum(exponents, axis=(0, 1)), g[0], grads


_WITHIN = {
    "chunked": (_sequential_forward, _sequential_backward),
    "associative": (_associative_forward, _associative_backward),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_chunks(form, chunk, tokens, A, h):
    """As `_recurrent`, in chunks."""
    return _forward(form, chunk, tokens, A, h)[0]


def _cut(tokens, chunk):
    """Time as "chunks chunk"; what is missing is filled with steps of 0, which leave the state alone."""
    missing = -len(tokens.x) % chunk
    filled = jax.tree.map(lambda array: jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)), tokens)
    if tokens.keep is not None and missing:
        filled = filled._replace(keep=filled.keep.at[-missing:].set(1))
    return jax.tree.map(lambda array: array.reshape(-1, chunk, *array.shape[1:]), filled)


def _forward(form, chunk, tokens, A, h):
    forward, time = _WITHIN[form][0], len(tokens.x)
    chunk = min(chunk, time)

    def one(h, part):
        y, after = forward(A, h, part)
        return after, (h, y)

    last, (borders, y) = lax.scan(one, h, _cut(tokens, chunk))
    return (y.reshape(-1, *y.shape[2:])[:time], last), (tokens, A, borders)


def _backward(form, chunk, saved, given):
    tokens, A, borders = saved
    dy, g = given
    backward, time = _WITHIN[form][1], len(tokens.x)
    chunk = min(chunk, time)

    def one(carry, part):
        g, dA = carry
        tokens, h, dy = part
        more, g, grads = backward(A, h, tokens, dy, g)
        return (g, dA + more), grads

    dy = jnp.pad(dy, ((0, -time % chunk), (0, 0), (0, 0))).reshape(-1, chunk, *dy.shape[1:])
    (g, dA), grads = lax.scan(one, (g, jnp.zeros_like(A)), (_cut(tokens, chunk), borders, dy), reverse=True)
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:time], grads), dA, g


_in_chunks.defvjp(_forward, _backward)

_FORMS = {
    "recurrent": _recurrent,
    "chunked": functools.partial(_in_chunks, "chunked"),
    "associative": functools.partial(_in_chunks, "associative"),
}
