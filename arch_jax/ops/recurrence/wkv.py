"""RWKV's two recurrences, WKV of version 4 and the matrix state of version 7, and the token shift that feeds them."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.platform import platform
from arch_jax.ops.precision import picked
from arch_jax.ops.recurrence.linear import FORMS, check_chunk, linear_recurrence, scan_in_chunks

__all__ = ["WKVState", "generalised_delta_rule", "generalised_delta_rule_reference", "token_shift", "wkv"]
__all__ += ["wkv_initial_state", "wkv_reference"]

#: The exponent of a sum that holds nothing yet: finite, so that differences of two are 0 and not NaN.
_NOTHING = -1e38


def token_shift(
    x: Float[Array, "batch time width"],
    before: Float[Array, "batch width"] | None = None,
    starts: Bool[Array, "batch time"] | None = None,
    real: Bool[Array, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time width"], Float[Array, "batch width"]]:
    """For each token the one before it in its run, and 0 for the first of a run.

    Args:
      before: the last token so far; 0 by default.
      starts: True for tokens that begin a run; none by default.
      real: False for padding; all True by default. Padding is passed over.

    Returns:
      (the tokens before, the last token of the sequence).

    Source: Peng et al. 2023, arXiv 2305.13048, section 3.1.1 and figure 3.
    """
    before = jnp.zeros_like(x[:, 0]) if before is None and x.shape[1] else before
    if x.shape[1] == 0:
        return x, jnp.zeros((x.shape[0], x.shape[2]), x.dtype) if before is None else before
    padded = jnp.concatenate([before[:, None].astype(x.dtype), x], axis=1)
    if real is None:
        shifted, last = padded[:, :-1], padded[:, -1]
    else:
        latest = lax.cummax(jnp.where(real, jnp.arange(1, x.shape[1] + 1), 0), axis=1)
        earlier = jnp.concatenate([jnp.zeros_like(latest[:, :1]), latest[:, :-1]], axis=1)
        shifted = picked(padded, earlier)
        last = picked(padded, latest[:, -1:])[:, 0]
    return (shifted if starts is None else jnp.where(starts[..., None], 0, shifted)), last


class WKVState(NamedTuple):
    """The two sums of WKV over the current run, each as (number) * exp(m).

    Attributes:
      a: of exp(k) v, "batch channels".
      b: of exp(k), "batch channels".
      m: the largest exponent in them, "batch channels".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    a: Any
    b: Any
    m: Any


def wkv_initial_state(batch: int, channels: int, dtype: Any = jnp.float32) -> WKVState:
    """The state before the first token; at least float32."""
    zeros = jnp.zeros((batch, channels), jnp.promote_types(dtype, jnp.float32))
    return WKVState(zeros, zeros, zeros + _NOTHING)


def wkv(
    k: Float[Array, "batch time channels"],
    v: Float[Array, "batch time channels"],
    log_decay: Float[Array, "channels"],
    bonus: Float[Array, "channels"],
    *,
    starts: Bool[Array, "batch time"] | None = None,
    real: Bool[Array, "batch time"] | None = None,
    state: WKVState | None = None,
    form: str = "auto",
    chunk: int = 64,
) -> tuple[Float[Array, "batch time channels"], WKVState]:
    """An average of the values so far, whose weights fade with distance, for each channel:

        y_t = (sum_{i<t} e^{(t-1-i) d + k_i} v_i + e^{u + k_t} v_t) / (the same sum without v)

    The sums are kept as multiples of e^m, where m is the largest exponent in them, so that no key overflows. What is
    left, a_t = e^{m_{t-1} + d - m_t} a_{t-1} + e^{k_t - m_t} v_t, is a linear recurrence with factors of at most 1. y
    does not depend on m, which therefore needs no gradient.

    Args:
      k, v: keys and values.
      log_decay: d, negative: the weight of a token is multiplied by e^d with each token after the next.
      bonus: u, added to the current token's key.
      starts: True for tokens that begin a run; none by default.
      real: False for padding; all True by default. Padding leaves the state unchanged, and its y is
        undefined.
      state: returned by an earlier call.
      form: of the linear recurrence: "auto", "sequential", "chunked" or "associative"; all give the same.
      chunk: tokens in a chunk of the chunked form.

    Returns:
      y and the state after the sequence, both at least float32. Reverse-mode derivatives only.

    Raises:
      UsageError: an unknown form; `chunk` below 1; a state of another batch or number of channels.

    Source: Peng et al. 2023, arXiv 2305.13048, equation 16 and appendix D (the stable form).
    """
    batch, time, channels = k.shape
    if form not in FORMS:
        raise unknown("form of a linear recurrence", form, FORMS)
    check_chunk(chunk, "wkv")
    if state is None:
        state = wkv_initial_state(batch, channels, k.dtype)
    elif state.a.shape != (batch, channels):
        raise UsageError(f"the state of wkv has the shape {state.a.shape}; expected {(batch, channels)}")
    precise = jnp.promote_types(k.dtype, jnp.float32)
    k, v, d, u, a, b, m = (x.astype(precise) for x in (k, v, log_decay, bonus, *state))
    if time == 0:
        return k, WKVState(a, b, m)

    fades = jnp.broadcast_to(d, k.shape)
    enters = k
    if starts is not None:  # what was before has no weight
        fades = jnp.where(starts[..., None], _NOTHING, fades)
    if real is not None:
        fades, enters = jnp.where(real[..., None], fades, 0), jnp.where(real[..., None], k, _NOTHING)
    exponents = lax.stop_gradient(_largest(lax.stop_gradient(fades), lax.stop_gradient(enters), m, form))
    earlier = jnp.concatenate([lax.stop_gradient(m)[:, None], exponents[:, :-1]], axis=1)
    weight = jnp.exp(enters - exponents)
    if real is not None:  # among tokens of which none was real yet, all exponents are equal
        weight = jnp.where(real[..., None], weight, 0)
    added = jnp.stack([weight * v, weight], axis=2)
    factor = jnp.broadcast_to(jnp.exp(fades + (earlier - exponents))[:, :, None], added.shape)
    sums = linear_recurrence(factor, added, jnp.stack([a, b], axis=1), form=form, chunk=chunk)
    before = jnp.concatenate([jnp.stack([a, b], axis=1)[:, None], sums[:, :-1]], axis=1)
    if starts is not None:
        earlier = jnp.where(starts[..., None], _NOTHING, earlier)

    now = u + k
    largest = lax.stop_gradient(jnp.maximum(earlier, now))
    past, present = jnp.exp(earlier - largest), jnp.exp(now - largest)
    y = (past * before[:, :, 0] + present * v) / (past * before[:, :, 1] + present)
    return y, WKVState(sums[:, -1, 0], sums[:, -1, 1], exponents[:, -1])


def _largest(fades, enters, before, form):
    """m_t = max(m_{t-1} + fades_t, enters_t): the same recurrence with max for + and + for *."""
    fades, enters = fades.swapaxes(0, 1), enters.swapaxes(0, 1)
    associative = form == "associative" or (form == "auto" and platform() != "cpu")
    if associative:
        enters = enters.at[0].set(jnp.maximum(before + fades[0], enters[0]))
        combine = lambda early, late: (early[0] + late[0], jnp.maximum(early[1] + late[0], late[1]))
        m = lax.associative_scan(combine, (fades, enters))[1]
    else:
        step = lambda m, now: (jnp.maximum(m + now[0], now[1]),) * 2
        m = lax.scan(step, before, (fades, enters))[1]
    return jnp.maximum(m, _NOTHING).swapaxes(0, 1)


def wkv_reference(k: Any, v: Any, log_decay: Any, bonus: Any, run: Any = None) -> np.ndarray:
    """`wkv` of whole rows as it is defined: for each token, all exponents of its run at once; 0 at padding."""
    k, v, d, u = (np.asarray(x, np.float64) for x in (k, v, log_decay, bonus))
    run = np.ones(k.shape[:2], int) if run is None else np.asarray(run)
    y = np.zeros(k.shape)
    for b, t in np.argwhere(run > 0):
        past = [s for s in range(t) if run[b, s] == run[b, t]]
        exponents = np.stack([(len(past) - 1 - i) * d + k[b, s] for i, s in enumerate(past)] + [u + k[b, t]])
        weights = np.exp(exponents - exponents.max(axis=0))
        y[b, t] = (weights * v[b, [*past, t]]).sum(axis=0) / weights.sum(axis=0)
    return y


def generalised_delta_rule(
    r: Float[Array, "batch time heads dim"],
    log_decay: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch time heads dim"],
    v: Float[Array, "batch time heads vdim"],
    removal: Float[Array, "batch time heads dim"],
    rate: Float[Array, "batch time heads dim"],
    *,
    starts: Bool[Array, "batch time"] | None = None,
    real: Bool[Array, "batch time"] | None = None,
    state: Float[Array, "_ heads_ vdim_ dim_"] | None = None,
    chunk: int = 64,
) -> tuple[Float[Array, "batch time heads vdim"], Float[Array, "batch heads vdim dim"]]:
    """S_t = S_{t-1} (diag(w_t) - kappa_t (a_t * kappa_t)^T) + v_t k_t^T and y_t = S_t r_t, for each head.

    Each channel of the key decays at a rate of its own (w), and what the state holds for the direction kappa is removed
    and written back under channels weighted by a: the delta rule is w = 1, kappa = k, a constant. The gradient keeps
    the state between chunks only.

    Args:
      r: receptances, the queries.
      log_decay: log w, at most 0.
      k, v: keys and values.
      removal: kappa, of length 1 for a stable state.
      rate: a, in [0, 1] for a stable state.
      starts: True for tokens that begin a run; none by default.
      real: False for padding; all True by default. Padding leaves the state unchanged, and its y is
        undefined.
      state: S_0; 0 by default.
      chunk: steps between two states that the gradient keeps.

    Returns:
      y and the last S, both at least float32.

    Raises:
      UsageError: `chunk` below 1; a state of another shape.

    Source: Peng et al. 2025, arXiv 2503.14456, equations 15 to 17 (there S is what is transposed here).
    """
    batch, _, heads, dim = k.shape
    shape = (batch, heads, v.shape[-1], dim)
    precise = jnp.promote_types(k.dtype, jnp.float32)
    state = jnp.zeros(shape, precise) if state is None else state
    if state.shape != shape:
        raise UsageError(f"the state of the delta rule has the shape {state.shape}; expected {shape}")
    r, d, k, v, kappa, a = (x.astype(precise) for x in (r, log_decay, k, v, removal, rate))
    w = jnp.exp(d)
    if real is not None:
        there = real[:, :, None, None]
        w, k, a = jnp.where(there, w, 1), jnp.where(there, k, 0), jnp.where(there, a, 0)
    put = -a * kappa

    def step(s, now):
        r, w, k, v, kappa, put, start = now
        if start is not None:
            s = jnp.where(start[:, None, None, None], 0, s)
        held = jnp.einsum("bhvk,bhk->bhv", s, kappa)
        s = s * w[:, :, None] + held[..., None] * put[:, :, None] + v[..., None] * k[:, :, None]
        return s, jnp.einsum("bhvk,bhk->bhv", s, r)

    along = tuple(None if x is None else x.swapaxes(0, 1) for x in (r, w, k, v, kappa, put, starts))
    state, y = scan_in_chunks(step, state.astype(precise), along, chunk=chunk)
    return y.swapaxes(0, 1), state


def generalised_delta_rule_reference(r: Any, log_decay: Any, k: Any, v: Any, removal: Any, rate: Any) -> np.ndarray:
    """`generalised_delta_rule` of whole rows, with the transition written out as a matrix."""
    r, d, k, v, kappa, a = (np.asarray(x, np.float64) for x in (r, log_decay, k, v, removal, rate))
    batch, time, heads, dim = k.shape
    y = np.zeros(v.shape)
    for b, h in np.ndindex(batch, heads):
        s = np.zeros((v.shape[-1], dim))
        for t in range(time):
            at = (b, t, h)
            transition = np.diag(np.exp(d[at])) - np.outer(kappa[at], a[at] * kappa[at])
            s = s @ transition + np.outer(v[at], k[at])
            y[at] = s @ r[at]
    return y
