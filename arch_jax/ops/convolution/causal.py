"""The short convolution in front of modern recurrences: each channel on its own, over the latest few tokens."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.ops.precision import picked

__all__ = ["ConvolutionState", "causal_convolution", "causal_convolution_reference", "initial_state"]


class ConvolutionState(NamedTuple):
    """The tokens that the next outputs still depend on.

    Attributes:
      x: the latest real tokens, the last one last, "batch size-1 channels".
      run: the number of the run that each belongs to, 0 where there was none yet, "batch size-1".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    x: Any
    run: Any


def initial_state(batch: int, size: int, channels: int, dtype: Any = jnp.float32) -> ConvolutionState:
    """The state before the first token, of a kernel of `size`."""
    return ConvolutionState(jnp.zeros((batch, size - 1, channels), dtype), jnp.zeros((batch, size - 1), jnp.int32))


def causal_convolution(
    x: Float[Array, "batch time channels"],
    kernel: Float[Array, "size channels"],
    bias: Float[Array, "channels"] | None = None,
    *,
    run: Int[Array, "batch time"] | None = None,
    before: ConvolutionState | None = None,
) -> tuple[Float[Array, "batch time channels"], ConvolutionState | None]:
    """y_t = bias + sum_j kernel[j] * x_{t - (size - 1) + j}: the kernel's last row multiplies the token itself.

    Tokens before the sequence, or in another run, count as 0.

    Args:
      run: only equal numbers see each other; 0 is padding, which is left out: its output is 0, and the tokens around it
        are neighbours. As `ops.segments` counts them.
      before: state returned by an earlier call; without `run` its last run continues.

    Returns:
      y, and the state for the next call (None where `before` is).

    Raises:
      UsageError: a state of another batch size, kernel or number of channels.
    """
    (batch, time, channels), size = x.shape, kernel.shape[0]
    if before is not None and before.x.shape != (batch, size - 1, channels):
        raise UsageError(
            f"the convolution's state has the shape {before.x.shape}; expected {(batch, size - 1, channels)}: batch, "
            "the kernel's size less 1, channels"
        )
    if run is None and before is None:
        padded = jnp.pad(x, ((0, 0), (size - 1, 0), (0, 0)))
        y = sum(padded[:, j : j + time] * kernel[j] for j in range(size))
        return (y if bias is None else y + bias), None
    if before is None:
        state, numbers = initial_state(batch, size, channels, x.dtype), run
    else:
        state = before
        # Without ids the last run continues, or run 1 begins: before the first token all is run 0.
        latest = jnp.max(state.run, axis=1, initial=0)
        numbers = jnp.broadcast_to(jnp.maximum(latest, 1)[:, None], (batch, time)) if run is None else run
    numbers = numbers.astype(state.run.dtype)
    real = numbers > 0
    place, order = None, None
    if run is not None and time > 1:
        # Real tokens first, in their order: then neighbours are neighbours. `place` is where each went.
        order = jnp.argsort(~real, axis=1, stable=True)
        place = jnp.argsort(order, axis=1)
    at = lambda array, index: array if index is None else picked(array, index)
    padded = jnp.concatenate([state.x.astype(x.dtype), at(x, order)], axis=1)
    runs = jnp.concatenate([state.run, at(numbers, order)], axis=1)
    own = runs[:, size - 1 :]
    y = sum(
        jnp.where((runs[:, j : j + time] == own)[..., None], padded[:, j : j + time], 0) * kernel[j]
        for j in range(size)
    )
    y = jnp.where(real[..., None], at(y if bias is None else y + bias, place), 0)
    if before is None:
        return y, None
    # The last size - 1 of the real tokens, counted from where they end.
    held = jnp.sum(real, axis=1)[:, None] + jnp.arange(size - 1)
    return y, ConvolutionState(at(padded, held).astype(before.x.dtype), at(runs, held))


def causal_convolution_reference(x: Any, kernel: Any, bias: Any = None, run: Any = None) -> np.ndarray:
    """`causal_convolution` of a whole row as it is defined: for each token, the latest ones of its run."""
    x, kernel = np.asarray(x), np.asarray(kernel)
    run = np.ones(x.shape[:2], int) if run is None else np.asarray(run)
    y = np.zeros(x.shape, x.dtype)
    for b, t in np.argwhere(run > 0):
        seen = [s for s in range(t + 1) if run[b, s] == run[b, t]][-len(kernel) :]
        y[b, t] = sum(kernel[len(kernel) - n] * x[b, s] for n, s in zip(range(len(seen), 0, -1), seen))
        y[b, t] += 0 if bias is None else np.asarray(bias)
    return y
