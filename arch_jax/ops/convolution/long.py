"""Causal convolutions as long as the sequence: by Fourier transform, as a Toeplitz matrix, and token by token."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.precision import picked

__all__ = ["FORMS", "ConvolutionCache", "initial_cache", "long_convolution", "long_convolution_reference", "streamed"]

FORMS = ("auto", "direct", "fft")
#: Sequences up to this length are multiplied by a Toeplitz matrix under "auto".
_SHORT = 64


def long_convolution(
    u: Float[Array, "batch time channels"],
    h: Float[Array, "lags channels"],
    *,
    run: Int[Array, "batch time"] | None = None,
    position: Int[Array, "batch time"] | None = None,
    form: str = "auto",
) -> Float[Array, "batch time channels"]:
    """y_t = sum_{s <= t} h_{t-s} u_s, each channel on its own.

    Of packed rows, each run is convolved alone, with h_{p_t - p_s} of positions in the run: "direct" masks its Toeplitz
    matrices, one a row; "fft" transforms the rows once for each run that the fullest row holds.

    Args:
      u: the input.
      h: the filter, with at least as many lags as there are tokens.
      run, position: as `ops.segments.runs_and_positions` gives them; by default one run. Padding's y is 0.
      form: "direct", the product with a Toeplitz matrix, quadratic in time and exactly causal; "fft", which takes
        n log n and lets the rounding of later tokens (1e-7 of their size) in; "auto" is direct up to 64 tokens.

    Returns:
      y in u's dtype; computed in at least float32. Reverse-mode derivatives only.

    Raises:
      UsageError: an unknown form; more tokens than lags; only one of `run` and `position`.

    Source: Poli et al. 2023, arXiv 2302.10866, sections 2.1 and 3.3.
    """
    if form not in FORMS:
        raise unknown("form of a long convolution", form, FORMS)
    if (run is None) != (position is None):
        raise UsageError("a long convolution was given one of run and position; expected both or none")
    time = u.shape[1]
    if time > h.shape[0]:
        raise UsageError(
            f"a long convolution was given {time} tokens; expected at most {h.shape[0]}, the filter's lags"
        )
    if time == 0:
        return u
    precise = jnp.promote_types(u.dtype, jnp.float32)
    x, h = u.astype(precise), h[:time].astype(precise)
    if form == "direct" or (form == "auto" and time <= _SHORT):
        y = _direct(x, h, run, position)
    elif run is None:
        y = _by_fft(x, h)
    else:
        y = _by_runs(x, h, run, position)
    return y.astype(u.dtype)


def long_convolution_reference(u: Any, h: Any, run: Any = None) -> np.ndarray:
    """`long_convolution` as it is defined: each token's sum over its run so far."""
    u, h = np.asarray(u), np.asarray(h)
    run = np.ones(u.shape[:2], int) if run is None else np.asarray(run)
    y = np.zeros(u.shape, np.result_type(u, h))
    for b, t in np.argwhere(run > 0):
        seen = [s for s in range(t + 1) if run[b, s] == run[b, t]]
        y[b, t] = sum(h[len(seen) - 1 - i] * u[b, s] for i, s in enumerate(seen))
    return y


def _direct(u, h, run, position):
    """The Toeplitz matrix T_{ts} = h_{t-s}, or one a row where rows are packed."""
    i = jnp.arange(u.shape[1])
    if run is None:
        toeplitz = jnp.where((i[:, None] >= i)[..., None], h[i[:, None] - i], 0)
        return jnp.einsum("tsc,bsc->btc", toeplitz, u, precision=lax.Precision.HIGHEST)
    visible = (run[:, :, None] == run[:, None]) & (run > 0)[:, :, None] & (i[:, None] >= i)
    lag = jnp.where(visible, position[:, :, None] - position[:, None], 0)
    toeplitz = jnp.where(visible[..., None], h[lag], 0)
    return jnp.einsum("btsc,bsc->btc", toeplitz, u, precision=lax.Precision.HIGHEST)


def _padded(time: int) -> int:
    """The least even number from 2 time - 1 whose only factors are 2, 3 and 5: transforms of such lengths are fast."""
    n = max(2, 2 * time - 1)
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and n % 2 == 0:
            return n
        n += 1


def _transform(x, n):
    return jnp.fft.rfft(x, n, axis=-2)


def _back(x, n, time):
    return jnp.fft.irfft(x, n, axis=-2)[..., :time, :]


def _by_fft(u, h):
    """Convolution as a product of transforms, of twice the length so that the end does not meet the beginning."""
    n = _padded(u.shape[1])
    return _back(_transform(u, n) * _transform(h, n), n, u.shape[1])


def _alone(x, here, position):
    """A run's tokens at their positions, and 0 after them: "batch time channels"."""
    rows = jnp.arange(x.shape[0])[:, None]
    return jnp.zeros_like(x).at[rows, jnp.where(here, position, x.shape[1])].set(x, mode="drop")


def _at_home(y, here, position):
    """The other way: what stands at the positions of a run's tokens, and 0 at other tokens."""
    return jnp.where(here[..., None], picked(y, position), 0)


@jax.custom_vjp
def _by_runs(u, h, run, position):
    """`_by_fft` of one run after another. Their number is known only at run time: hence a gradient by hand."""
    n, time = _padded(u.shape[1]), u.shape[1]
    transformed = _transform(h, n)

    def one(r, y):
        here = run == r
        return y + _at_home(_back(_transform(_alone(u, here, position), n) * transformed, n, time), here, position)

    return lax.fori_loop(1, jnp.max(run) + 1, one, jnp.zeros_like(u))


def _runs_forward(u, h, run, position):
    return _by_runs(u, h, run, position), (u, h, run, position)


def _runs_backward(saved, g):
    # A convolution's gradients are correlations: products with the conjugate transform.
    u, h, run, position = saved
    n, time = _padded(u.shape[1]), u.shape[1]
    transformed = jnp.conj(_transform(h, n))

    def one(r, gradients):
        d_u, d_h = gradients
        here = run == r
        arrived = _transform(_alone(g, here, position), n)
        sent = jnp.conj(_transform(_alone(u, here, position), n))
        d_u = d_u + _at_home(_back(arrived * transformed, n, time), here, position)
        return d_u, d_h + _back((arrived * sent).sum(axis=0), n, time)

    start = (jnp.zeros_like(u), jnp.zeros_like(h))
    return *lax.fori_loop(1, jnp.max(run) + 1, one, start), None, None


_by_runs.defvjp(_runs_forward, _runs_backward)


class ConvolutionCache(NamedTuple):
    """Cache of a streamed long convolution: every token of the current run.

    Attributes:
      u: the tokens at their positions, and 0 after them, "batch length channels".
      last_run: the number of that run, 0 before the first, "batch".
      last_position: of its last token, -1 before the first, "batch".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    u: Any
    last_run: Any
    last_position: Any


def initial_cache(batch: int, length: int, channels: int, dtype: Any = jnp.float32) -> ConvolutionCache:
    """The cache before the first token, with room for runs of `length` tokens."""
    zeros = jnp.zeros((batch,), jnp.int32)
    return ConvolutionCache(jnp.zeros((batch, length, channels), dtype), zeros, zeros - 1)


def streamed(
    u: Float[Array, "batch time channels"],
    h: Float[Array, "lags channels"],
    cache: ConvolutionCache,
    run: Int[Array, "batch time"],
    position: Int[Array, "batch time"],
    form: str = "auto",
) -> tuple[Float[Array, "batch time channels"], ConvolutionCache]:
    """`long_convolution` of a sequence that comes in parts: O(length) multiplications for a token and channel.

    Args:
      h: the filter, with at least as many lags as the cache has room.
      cache: returned by an earlier call, or `initial_cache`.
      run, position: of `ops.segments.runs_and_positions`, counted on from the earlier parts. A position from the room
        on gives NaN.

    Returns:
      y, and the cache for the next part.
    """
    batch, time, _ = u.shape
    room = cache.u.shape[1]
    if cache.u.shape != (batch, room, u.shape[2]):
        raise UsageError(f"the cache has the shape {cache.u.shape}; expected {(batch, room, u.shape[2])}")
    if room > h.shape[0]:
        raise UsageError(f"the cache has room for {room} tokens; expected at most {h.shape[0]}, the filter's lags")
    if time == 0:
        return u, cache
    precise = jnp.promote_types(u.dtype, jnp.float32)
    x, h, held = u.astype(precise), h.astype(precise), cache.u.astype(precise)
    place = lambda array, here: array.at[jnp.arange(batch)[:, None], jnp.where(here, position, room)].set(
        u.astype(array.dtype), mode="drop"
    )
    real = run > 0
    last = jnp.maximum(cache.last_run, jnp.max(run, axis=1))
    goes_on, ends_here = last == cache.last_run, real & (run == last[:, None])
    now = place(jnp.where(goes_on[:, None, None], cache.u, 0), ends_here)
    furthest = jnp.maximum(jnp.where(goes_on, cache.last_position, -1), jnp.max(jnp.where(ends_here, position, -1), 1))
    if time == 1:  # the token is in the cache already: one sum over it
        lag = position - jnp.arange(room)
        weights = jnp.where((lag >= 0)[..., None], h[jnp.maximum(lag, 0)], 0)
        y = jnp.einsum("blc,blc->bc", weights, now.astype(precise))[:, None]
    else:
        older = real & (run == cache.last_run[:, None])
        y = long_convolution(place(held, older), h, form=form)
        y = jnp.where(older[..., None], picked(y, jnp.minimum(position, room - 1)), 0)
        y = y + long_convolution(x, h, run=jnp.where(older, 0, run), position=position, form=form)
    y = jnp.where((position < room)[..., None], y, jnp.nan)
    return jnp.where(real[..., None], y, 0).astype(u.dtype), ConvolutionCache(now, last, furthest)
