"""Hyena as a sequence mixer: gates between convolutions whose filters are as long as the sequence (2302.10866)."""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import check_state, runs
from arch_jax.layers.mixers.short_convolution import ShortConvolution
from arch_jax.layers.sequence_position import at_start
from arch_jax.ops.convolution import long as ops
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import Count, Signed


@flax.struct.dataclass
class HyenaState:
    """Decoding state: the filters, and the whole input of each convolution, since each output depends on all of it.

    A filter is the output of a network at every lag. Computed anew for each token it would cost far more than the sum
    that a token needs, so the first call computes it, and later ones read it. Like the rest of the state it belongs to
    the parameters that made it.

    Attributes:
      short: of the short convolutions.
      long: the input of each long convolution at every position of the run, a tuple of "batch length width".
      filter: the filters' lags, once for each row as everything in a state, "batch length channels".
      filled: whether `filter` has been computed, "batch".
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    short: Any
    long: Any
    filter: Any
    filled: Any
    at: Any


class ImplicitFilter(nn.Module):
    """h_t = Window(t) * FFN(PositionalEncoding(t)), t = 0 ... length - 1 (2302.10866, equation 7 and appendix D.3).

    The encoding is t / (length - 1) and sine and cosine of some frequencies; the network's activations are sines of a
    learned frequency; the window is e^{-delta t}, with a delta for each channel between a slow and a fast one.

    Attributes:
      channels: filters.
      length: positions that the encoding spans.
      width: of the network's hidden layers.
      features: of the encoding: odd, at least 3.
      depth: hidden layers after the first.
      frequency: initial frequency of the activations.
      fast: the fraction of `length` after which the fastest window has fallen to 0.01.
      slow: the same for the slowest window.
      shift: added to each window, which then does not end at 0.
      parameter_dtype: of the parameters; the filter is computed in at least float32.
    """

    channels: int
    length: int
    width: int = 64
    features: int = 3
    depth: int = 2
    frequency: float = 1.0
    fast: float = 0.3
    slow: float = 1.5
    shift: float = 0.0
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, time: int, dtype: DType = jnp.float32) -> Float[Array, "time channels"]:
        """The first `time` lags of each filter."""
        t, encoding = positional_encoding(self.length, self.features)
        t, z = jnp.asarray(t[:time], dtype), jnp.asarray(encoding[:time], dtype)
        frequency = nn.initializers.constant(self.frequency)
        omega = self.param("frequency", frequency, (self.width,), self.parameter_dtype).astype(dtype)
        for i in range(self.depth + 1):
            z = jnp.sin(omega * self._layer(z, f"hidden_{i}", self.width, True))
        h = self._layer(z, "output", self.channels, False)
        # Both decays are of a window that starts at 1 and has fallen to 0.01 after a share of the length.
        deltas = np.linspace(math.log(0.01) / self.slow, math.log(0.01) / self.fast, self.channels)
        return h * (jnp.exp(t[:, None] * jnp.asarray(deltas, dtype)) + self.shift)

    def _layer(self, x, name, features, bias):
        """A linear layer that starts as PyTorch's do: uniform within the root of 1 / inputs."""
        limit = x.shape[-1] ** -0.5
        uniform = lambda key, shape, dtype: nn.initializers.uniform(2 * limit)(key, shape, dtype) - limit
        shape = (x.shape[-1], features)
        y = x @ self.param(f"{name}_kernel", uniform, shape, self.parameter_dtype).astype(x.dtype)
        return y + self.param(f"{name}_bias", uniform, (features,), self.parameter_dtype).astype(x.dtype) if bias else y


def positional_encoding(length: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """(t in [0, 1], its encoding "length features": t, cosines, and negative sines), as in the authors' code."""
    t = np.linspace(0, 1, length)
    bands = (features - 1) // 2
    angles = 2 * np.pi * np.arange(length)[:, None] / length * np.linspace(1e-4, bands - 1, bands)
    return t, np.concatenate([t[:, None], np.cos(angles), -np.sin(angles)], axis=1)


@component("hyena", kind="mixer")
class Hyena(nn.Module):
    """The Hyena operator (Poli et al. 2023, 2302.10866, definition 3.1 and algorithms 1 to 3):

        x_0, ..., x_{N-1}, v = ShortConvolution(u W_in + b_in)
        v <- h_n * (x_n v) + d_n x_n v,     n = N-1, ..., 1         (* is the convolution with filter n, d a skip)
        y = (x_0 v) W_out + b_out

    as in the authors' `standalone_hyena.py`: order N has N - 1 long convolutions. Decoding keeps what went into them,
    and the filters, so a token costs O(length), and memory grows with the length, as with attention.

    Attributes:
      order: N, at least 2.
      length: tokens that the filters span; a longer sequence is an error.
      short: tokens of the short convolutions.
      filter_width: of the filters' networks.
      filter_depth: hidden layers of those networks after the first.
      features: of the positions' encoding: odd, at least 3.
      frequency: initial frequency of the networks' sines.
      fast: the fraction of `length` after which the fastest window has fallen to 0.01.
      slow: the same for the slowest window.
      shift: added to each window, which then does not end at 0.
      form: of the long convolution: "auto", "direct" or "fft"; see `ops.long_convolution`.
      initial_std: standard deviation of the initial weights of both projections; None is that of fan-in scaling.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; filters and transforms are at least float32.
      parameter_dtype: of the parameters.
    """

    order: int = 2
    length: int = 1024
    short: int = 3
    filter_width: int = 64
    filter_depth: Count = 2
    features: int = 3
    frequency: float = 1.0
    fast: float = 0.3
    slow: float = 1.5
    shift: Signed = 0.0
    form: str = "auto"
    initial_std: float | None = 0.02
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        least = {"order": 2, "length": 1, "short": 1, "filter_width": 1, "filter_depth": 0, "features": 3}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise UsageError(f"{name} of hyena is {getattr(self, name)}; expected at least {lowest}")
        if self.features % 2 == 0:
            raise UsageError(
                f"features of hyena is {self.features}; expected an odd number, such as {self.features + 1}: "
                "time, and pairs of sine and cosine"
            )
        for name in ("fast", "slow"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} of hyena is {getattr(self, name)}; expected a fraction of the length above 0")
        super().__post_init__()

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> HyenaState:
        """The state before the first token, with room for `length` tokens a row.

        Raises:
          UsageError: `length` is beyond the filters.
        """
        self._check(length)
        zeros = jnp.zeros((batch,), jnp.int32)
        short = ShortConvolution(self.short, parent=None).initial_state(batch, (self.order + 1) * width, dtype)
        long = tuple(ops.initial_cache(batch, length, width, dtype).u for _ in range(self.order - 1))
        lags = jnp.zeros((batch, length, (self.order - 1) * width), jnp.promote_types(dtype, jnp.float32))
        return HyenaState(short, long, lags, zeros > 0, at_start(batch))

    def _check(self, length: int) -> None:
        if length > self.length:
            raise UsageError(f"hyena was given {length} tokens; expected at most {self.length}, the filters' length")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Any = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time width"], HyenaState | None]:
        x = read_where_real(x, segment_ids)
        batch, time, width = x.shape
        self._check(time)
        check_state(state, HyenaState, batch, "hyena")
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        run, position, after = runs(x, segment_ids, state)

        dense = {"initial_std": self.initial_std} | dtypes
        projected = Dense((self.order + 1) * width, **dense, parent=self, name="input")(x)
        convolution = ShortConvolution(self.short, **dtypes, parent=self, name="convolution")
        mixed, short = convolution(projected, run, None if state is None else state.short)
        *gates, v = jnp.split(mixed, self.order + 1, axis=-1)

        precise = jnp.promote_types(self.dtype, jnp.float32)
        settings = (self.filter_width, self.features, self.filter_depth, self.frequency, self.fast, self.slow)
        settings += (self.shift, self.parameter_dtype)
        filters = ImplicitFilter((self.order - 1) * width, self.length, *settings, parent=self, name="filter")
        h = filters(time, precise) if state is None else self._kept(filters, state, precise)
        skip = self.param("skip", nn.initializers.normal(1.0), ((self.order - 1) * width,), self.parameter_dtype)
        caches = []
        for i, gate in enumerate(reversed(gates[1:])):
            channels = slice(i * width, (i + 1) * width)
            u = v * gate
            if state is None:
                v = ops.long_convolution(u, h[:, channels], run=run, position=position, form=self.form)
            else:
                cache = ops.ConvolutionCache(state.long[i], state.at.last_run, state.at.last_position)
                v, cache = ops.streamed(u, h[:, channels], cache, run, position, self.form)
                caches.append(cache.u)
            v = v + u * skip[channels].astype(u.dtype)
        output = Dense(width, gain=self.residual_scale, **dense, parent=self, name="output", to_stream=True)
        y = output(v * gates[0])
        if run is not None:  # with a bias, the output at padding would not be 0
            y = jnp.where(run[..., None] > 0, y, 0)
        if state is None:
            return y, None
        kept = jnp.broadcast_to(h.astype(state.filter.dtype), state.filter.shape)
        return y, HyenaState(short, tuple(caches), kept, jnp.ones_like(state.filled), after)

    def _kept(self, filters: ImplicitFilter, state: HyenaState, dtype: DType) -> Float[Array, "lags channels"]:
        """The filters that a state has room for: those in it, or computed where it has none yet."""
        compute = lambda module, _: module(state.filter.shape[1], dtype)
        if self.is_initializing() or state.filter.size == 0:  # parameters can't be made in one branch alone
            return compute(filters, state)
        return nn.cond(jnp.all(state.filled), lambda _, kept: kept.filter[0].astype(dtype), compute, filters, state)
