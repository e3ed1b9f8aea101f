"""Recurrences along time: h_t = a_t h_{t-1} + b_t in three forms, and a scan whose gradient keeps little."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Inexact, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.platform import platform

__all__ = ["FORMS", "linear_recurrence", "linear_recurrence_reference", "resets", "scan_in_chunks"]

FORMS = ("auto", "sequential", "chunked", "associative", "pallas")


def linear_recurrence(
    a: Inexact[Array, "batch time *#state"],
    b: Inexact[Array, "batch time *#state"],
    before: Inexact[Array, "batch *#state"] | None = None,
    *,
    form: str = "auto",
    chunk: int = 64,
) -> Inexact[Array, "batch time *state"]:
    """h_t = a_t * h_{t-1} + b_t, elementwise, along the second axis.

    All forms give the same: "sequential" goes token by token; "chunked" goes through all chunks at once, and then
    carries h from chunk to chunk, time / chunk + chunk steps; "associative" takes log(time) steps over the whole
    sequence; "pallas" is a kernel for TPUs and GPUs (real numbers, float32), interpreted on a CPU. The gradient is the
    same recurrence from the end, and keeps a and h only. Reverse-mode derivatives only.

    Args:
      a: the factors, real or complex; broadcasts against b. 0 forgets; no larger than 1 for a stable recurrence.
      b: the input.
      before: h_0; 0 by default.
      form: one of `FORMS`; "auto" goes token by token on a CPU, takes the kernel on a TPU where it can, and is
        associative elsewhere.
      chunk: tokens in a chunk, at least 1.

    Returns:
      h_1 ... h_time in the dtype that a, b and `before` promote to.

    Raises:
      UsageError: an unknown form; `chunk` below 1.

    Source: Blelloch, "Prefix Sums and Their Applications", 1990, section 1.4; Martin and Cundy, arXiv 1709.04057,
    section 2 (the recurrence and its gradient as scans).
    """
    if form not in FORMS:
        raise unknown("form of a linear recurrence", form, FORMS)
    check_chunk(chunk, "a linear recurrence")
    dtype = jnp.result_type(a, b, *([] if before is None else [before]))
    shape = jnp.broadcast_shapes(a.shape, b.shape)
    a, b = (jnp.broadcast_to(x, shape).astype(dtype) for x in (a, b))
    before = jnp.zeros_like(b[:, 0]) if before is None and shape[1] else before
    if shape[1] == 0:
        return b
    if form == "auto":
        on_tpu = platform() == "tpu" and dtype == jnp.float32 and shape[1] > 1
        form = "sequential" if platform() == "cpu" else "pallas" if on_tpu else "associative"
    before = jnp.broadcast_to(before, b[:, 0].shape).astype(dtype)
    if form == "pallas" and dtype != jnp.float32:
        raise UsageError(f"the recurrence's kernel was given {dtype}; expected float32, or another form than 'pallas'")
    # Time first: what a scan goes along.
    return _recurrence(form, chunk, False, a.swapaxes(0, 1), b.swapaxes(0, 1), before).swapaxes(0, 1)


def linear_recurrence_reference(a: Any, b: Any, before: Any = None) -> np.ndarray:
    """`linear_recurrence` as it is defined: token after token, in Python."""
    a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    h = np.zeros(b[:, 0].shape, np.result_type(a, b)) if before is None else np.asarray(before)
    out = np.zeros(b.shape, np.result_type(a, b, h))
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        out[:, t] = h
    return out


def check_chunk(chunk: int, what: str) -> None:
    """Refuses a chunk without a token.

    Raises:
      UsageError: `chunk` is below 1.
    """
    if chunk < 1:
        raise UsageError(f"chunk of {what} is {chunk}; expected at least 1 token, such as 64")


def _combined(early, late):
    """Two consecutive intervals as one: h -> a h + b."""
    (a, b), (c, d) = early, late
    return a * c, b * c + d


def _by_scan(a, b, before, reverse):
    def step(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    return lax.scan(step, before, (a, b), reverse=reverse)[1]


def _in_chunks(chunk, a, b, before, reverse):
    if reverse:
        return jnp.flip(_in_chunks(chunk, jnp.flip(a, 0), jnp.flip(b, 0), before, False), 0)
    time = b.shape[0]
    chunk = min(chunk, time)
    missing = -time % chunk

    def cut(x, fill):  # "chunk chunks ...": a step of the first scan does the same place of every chunk
        x = jnp.concatenate([x, jnp.full((missing, *x.shape[1:]), fill, x.dtype)])
        return x.reshape(-1, chunk, *x.shape[1:]).swapaxes(0, 1)

    a, b = cut(a, 1), cut(b, 0)

    def step(carry, ab):
        carry = _combined(carry, ab)
        return carry, carry

    nothing = (jnp.ones_like(b[0]), jnp.zeros_like(b[0]))
    (whole_a, whole_b), (a, b) = lax.scan(step, nothing, (a, b))
    after = _by_scan(whole_a, whole_b, before, False)  # after each chunk
    h = a * jnp.concatenate([before[None], after[:-1]]) + b
    return h.swapaxes(0, 1).reshape(-1, *b.shape[2:])[:time]


def _by_kernel(a, b, before, reverse):
    from arch_jax.ops.pallas.recurrence import recurrence_kernel  # here: Pallas is only imported where it is used

    time, batch = b.shape[:2]
    flat = lambda x: x.swapaxes(0, 1).reshape(batch, time, -1)
    h = recurrence_kernel(flat(a), flat(b), before.reshape(batch, -1), reverse=reverse)
    return h.reshape(batch, time, *b.shape[2:]).swapaxes(0, 1)


def _moved(x, first, reverse):
    """x one step later ("time ..."), or with `reverse` one step earlier, and `first` where it begins."""
    return jnp.concatenate([x[1:], first[None]] if reverse else [first[None], x[:-1]])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _recurrence(form, chunk, reverse, a, b, before):
    """h_t = a_t h_{t-1} + b_t, or with `reverse` a_t h_{t+1} + b_t, of "time ..." and what lies before the first."""
    if form == "pallas":
        return _by_kernel(a, b, before, reverse)
    if form == "chunked":
        return _in_chunks(chunk, a, b, before, reverse)
    if form == "sequential":
        return _by_scan(a, b, before, reverse)
    first = -1 if reverse else 0
    return lax.associative_scan(_combined, (a, b.at[first].add(a[first] * before)), reverse=reverse)[1]


def _forward(form, chunk, reverse, a, b, before):
    h = _recurrence(form, chunk, reverse, a, b, before)
    return h, (a, h, before)


def _backward(form, chunk, reverse, saved, g):
    # dL/dh_t = g_t + a_{t+1} dL/dh_{t+1}: the same recurrence, the other way.
    a, h, before = saved
    nothing = jnp.zeros_like(before)
    d = _recurrence(form, chunk, not reverse, _moved(a, nothing, not reverse), g, nothing)
    first = -1 if reverse else 0
    return d * _moved(h, before, reverse), d, a[first] * d[first]


_recurrence.defvjp(_forward, _backward)


def scan_in_chunks(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, *, chunk: int = 64
) -> tuple[Any, Any]:
    """`jax.lax.scan(body, carry, xs)` whose gradient keeps the carry between chunks only.

    The backward pass goes through a chunk's steps a second time, and keeps what one chunk needs.

    Args:
      body: (carry, x) -> (carry, y).
      carry: before the first step.
      xs: a tree of arrays with as many steps along their first axis.
      chunk: steps in a chunk, at least 1; the square root of the number of steps needs least memory.

    Returns:
      (the carry after the last step, the y of each).

    Raises:
      UsageError: `chunk` is below 1.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv 1604.06174, section 4.
    """
    check_chunk(chunk, "a scan")
    steps = jax.tree.leaves(xs)[0].shape[0]
    run = jax.checkpoint(lambda carry, part: lax.scan(body, carry, part), prevent_cse=False)
    whole = steps // chunk * chunk
    if not whole:
        return run(carry, xs)
    cut = jax.tree.map(lambda x: x[:whole].reshape(-1, chunk, *x.shape[1:]), xs)
    carry, ys = lax.scan(run, carry, cut)
    ys = jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), ys)
    if whole == steps:
        return carry, ys
    carry, rest = run(carry, jax.tree.map(lambda x: x[whole:], xs))
    return carry, jax.tree.map(lambda y, r: jnp.concatenate([y, r]), ys, rest)


def resets(
    run: Int[Array, "batch time"], position: Int[Array, "batch time"]
) -> tuple[Bool[Array, "batch time"], Bool[Array, "batch time"]]:
    """Tokens that begin a run, where a state is reset, and real tokens, where it changes at all.

    Args:
      run, position: as `ops.segments.runs_and_positions` gives them.

    Returns:
      (starts, real).
    """
    real = run > 0
    return real & (position == 0), real
