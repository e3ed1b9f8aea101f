"""RWKV-7 as two sequence mixers: time mixing with a matrix state, and channel mixing (2503.14456)."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.mixers.contract import Place, check_state
from arch_jax.layers.mixers.rwkv4 import (
    ChannelMixer,
    ShiftState,
    TokenShiftMixer,
    orthogonal,
    ratios,
    shift_state,
    shifted,
)
from arch_jax.ops.recurrence import wkv as ops
from arch_jax.ops.recurrence.linear import check_chunk
from arch_jax.ops.segments import read_where_real

#: epsilon of the norm of each head.
_EPSILON = 64e-5


@flax.struct.dataclass
class RWKV7State(ShiftState):
    """Recurrent state of time mixing: beside the last token, a matrix for each head.

    Attributes:
      x: the last token, "batch width".
      at: position of each row, a `SequencePosition`.
      s: S, "batch heads head_size head_size": rows are values, columns keys.
    """

    s: Any


def _rank(scale: float, power: float, width: int) -> int:
    """The suggested rank for a width: a multiple of 32 (2503.14456, appendix F)."""
    return max(32, round(scale * width**power / 32) * 32)


@component("rwkv7", kind="mixer")
class RWKV7(TokenShiftMixer):
    """RWKV-7's time mixing (Peng et al. 2025, 2503.14456, section 4 and appendix E): a generalised delta rule

        S_t = S_{t-1} (diag(w_t) - kappa_t (a_t * kappa_t)^T) + v_t k_t^T,        y_t = S_t r_t

    for each head, of what a token shift mixes into six inputs x_r, x_w, x_k, x_v, x_a, x_g:

        r, k, v = x_r W_r, x_k W_k, x_v W_v
        w = exp(-e^{-1/2} sigmoid(w_0 + tanh(x_w A_w) B_w)),    a = sigmoid(a_0 + x_a A_a B_a)
        kappa = k * xi / |k * xi|,                              k <- k * (1 + (a - 1) * alpha)
        v <- v + (v_first - v) * sigmoid(v_0 + x_v A_v B_v)     in all layers but the first, where v is v_first
        out = (norm(y) + (r . (rho * k)) v) * (sigmoid(x_g A_g) B_g) W_o

    Parameters start as in the authors' training code: by channel and by the layer's place, W_o and every A at 0, so
    that a block is the identity at first.

    v_first comes from another layer, which the contract of mixers has no place for: `RWKV7Model` calls `mix` to pass it
    on. A `RWKV7` on its own, in a hybrid say, goes without.

    Attributes:
      head_size: channels of a head, a divisor of the width.
      decay_rank: columns of A_w; None is the suggested number for the width.
      rate_rank: columns of A_a; None is the suggested number.
      value_rank: columns of A_v; None is the suggested number.
      gate_rank: columns of A_g; None is the suggested number.
      chunk: tokens between two states that the gradient keeps.
      dtype: of the computation; the state is at least float32.
      parameter_dtype: of the parameters.
    """

    head_size: int = 64
    decay_rank: int | None = None
    rate_rank: int | None = None
    value_rank: int | None = None
    gate_rank: int | None = None
    chunk: int = 32
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        for name in ("head_size", "decay_rank", "rate_rank", "value_rank", "gate_rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} of rwkv7 is {getattr(self, name)}; expected at least 1")
        check_chunk(self.chunk, "rwkv7")
        super().__post_init__()

    def heads(self, width: int) -> int:
        """The number of heads for inputs of `width`.

        Raises:
          UsageError: `head_size` does not divide the width.
        """
        if width % self.head_size:
            best = next(n for n in range(min(self.head_size, width), 0, -1) if width % n == 0)
            raise UsageError(
                f"head_size {self.head_size} of rwkv7 does not divide the width {width}; the nearest below is {best}"
            )
        return width // self.head_size

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> RWKV7State:
        """The state before the first token; it has the same size for every `length`."""
        shape = (batch, self.heads(width), self.head_size, self.head_size)
        s = jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32))
        return RWKV7State(**shift_state(batch, width, dtype), s=s)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Any = None,
        train: bool = False,
        place: Place | None = None,
    ) -> tuple[Float[Array, "batch time width"], RWKV7State | None]:
        """The mixer's contract; the initial parameters depend on `place`, (layer, layers)."""
        x = read_where_real(x, segment_ids)
        y, state, _ = self.mix(x, segment_ids, state, place)
        return y, state

    @nn.compact
    def mix(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Any = None,
        place: Place | None = None,
        first: Float[Array, "batch time width"] | None = None,
    ) -> tuple[Float[Array, "batch time width"], RWKV7State | None, Float[Array, "batch time width"]]:
        """(y, the state, the values of the first layer); `first` is the latter, None in that layer itself."""
        batch, time, width = x.shape
        heads = self.heads(width)
        check_state(state, RWKV7State, batch, "rwkv7")
        x = x.astype(self.dtype)
        earlier, starts, real, parts = shifted(x, segment_ids, state)
        rising, falling = ratios(place)
        powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
        x_r, x_w, x_k, x_v, x_a, x_g = (
            self.drifted(f"mix_{name}", x, earlier, lambda c, p=p: 1 - c ** (p * falling)) for name, p in powers.items()
        )
        r = self.dense("receptance", width, uniform(0.5))(x_r)
        k = self.dense("key", width, uniform(0.05))(x_k)
        v = self.dense("value", width, uniform(0.5))(x_v)

        channel = jnp.arange(width)
        across = channel / max(width - 1, 1)
        middle = max((self.head_size - 1) / 2, 0.5)
        zigzag = (channel % self.head_size - (self.head_size - 1) / 2) / middle
        zigzag = zigzag * jnp.abs(zigzag)
        precise = jnp.promote_types(self.dtype, jnp.float32)
        slow = lambda: -5.5 + 6 * across ** (1 + rising**0.3) + 2.5 * zigzag
        rank = self.decay_rank or _rank(1.8, 0.5, width)
        w = self.low_rank(x_w, "decay", rank, jnp.tanh) + self.starting("decay_bias", slow)
        log_decay = -math.exp(-0.5) * nn.sigmoid(w.astype(precise))
        rank = self.rate_rank or _rank(1.8, 0.5, width)
        rate_bias = self.starting("rate_bias", lambda: -0.19 + 0.3 * zigzag + 0.4 * (across - 0.5))
        a = nn.sigmoid(self.low_rank(x_a, "rate", rank) + rate_bias)
        if first is None:
            first = v
        else:
            rank = self.value_rank or _rank(1.3, 0.5, width)
            bias = self.starting("value_bias", lambda: 0.73 - 0.4 * (across - 0.5))
            v = v + (first - v) * nn.sigmoid(self.low_rank(x_v, "value", rank) + bias)
        rank = self.gate_rank or _rank(0.6, 0.8, width)
        g = self.low_rank(x_g, "gate", rank, nn.sigmoid)

        kappa = (k * self.starting("removal", lambda: 0.71 - 0.1 * (across - 0.5))).reshape(batch, time, heads, -1)
        kappa = kappa.astype(precise)
        kappa = kappa * jnp.reciprocal(jnp.sqrt(jnp.maximum(jnp.sum(kappa**2, axis=-1, keepdims=True), 1e-24)))
        k = k * (1 + (a - 1) * self.starting("key_rate", lambda: jnp.full((width,), 1.02)))

        split = lambda array: array.reshape(batch, time, heads, self.head_size).astype(precise)
        r_h, k_h, v_h = map(split, (r, k, v))
        s = None if state is None else state.s
        masks = {"starts": starts, "real": real, "chunk": self.chunk}
        y, s = ops.generalised_delta_rule(r_h, split(log_decay), k_h, v_h, kappa, split(a), state=s, **masks)
        y = self.normed(y)
        bonus = self.starting("bonus", lambda: jnp.full((heads, self.head_size), -0.04), precise)
        y = y + jnp.sum(r_h * k_h * bonus, axis=-1, keepdims=True) * v_h
        y = self.dense("output", width)(y.reshape(batch, time, width).astype(self.dtype) * g)
        if real is not None:
            y = jnp.where(real[..., None], y, 0)
        return y, None if state is None else RWKV7State(**parts, s=s.astype(state.s.dtype)), first

    def low_rank(self, x: Array, name: str, rank: int, between: Callable | None = None) -> Array:
        """f(x A) B, which starts at 0, since A does."""
        inner = self.dense(f"{name}_down", rank)(x)
        inner = inner if between is None else between(inner)
        return self.dense(f"{name}_up", x.shape[-1], lambda *arguments: 0.1 * orthogonal(*arguments))(inner)

    def normed(self, y: Array) -> Array:
        """Each head's y with mean 0 and variance 1, then a factor and a summand for each channel."""
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y / jnp.sqrt(jnp.mean(y**2, axis=-1, keepdims=True) + _EPSILON)
        scale = self.starting("norm_scale", lambda: jnp.ones(y.shape[2:]), y.dtype)
        return y * scale + self.starting("norm_bias", lambda: jnp.zeros(y.shape[2:]), y.dtype)


@component("rwkv7_channel", kind="mixer")
class RWKV7Channel(ChannelMixer):
    """RWKV-7's channel mixing (2503.14456, section 4.2): y_t = relu((x_t + mu (x_{t-1} - x_t)) W_k)^2 W_v.

    W_v starts at 0.

    Attributes:
      hidden: channels of the hidden layer; None is four times the width.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    name_of_mixer: ClassVar[str] = "rwkv7_channel"

    def channel(self, x, earlier, hidden, falling):
        x_k = self.drifted("mix_k", x, earlier, lambda c: 1 - c ** (falling**4))
        k = self.dense("key", hidden, uniform(0.5))(x_k)
        return self.dense("value", x.shape[-1])(jnp.square(nn.relu(k)))


def uniform(scale: float) -> Callable:
    """The draw from within +- scale / sqrt(inputs)."""

    def draw(key: Array, shape: tuple[int, int], dtype: DType) -> Array:
        limit = scale * shape[0] ** -0.5
        return nn.initializers.uniform(2 * limit)(key, shape, dtype) - limit

    return draw
