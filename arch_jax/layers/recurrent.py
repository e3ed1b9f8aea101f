"""Recurrences as sequence mixers: a state of fixed size takes the place of a cache."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense


@flax.struct.dataclass
class LSTMState:
    """What an LSTM carries from token to token.

    Attributes:
      h: its output at the last token, "batch hidden".
      c: its cells, "batch hidden".
      last_id: the last segment id, "batch".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    h: Any
    c: Any
    last_id: Any


@component("lstm", kind="mixer")
class LSTM(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with forget gates (Gers et al. 2000).

        i, f, g, o = x_t W + h_{t-1} U + b
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t),        y_t = h_t

    without peepholes, as in `torch.nn.LSTM` (whose two biases add up to b). h_0 and c_0 are 0. Where `hidden` is not
    the width there is a matrix more, y_t = h_t V, since the residual stream has the width; where it is, none is added,
    so that the layer is the published one.

    Attributes:
      hidden: cells; None is as many as the width.
      forget_bias: what the forget gates' share of b starts from: 1 remembers at first (Jozefowicz et al. 2015).
      residual_scale: factor on the initial V, set by a decoder that scales such weights with its depth.
      dtype: of the computation; gates, h and c are at least float32.
      parameter_dtype: of the parameters.
    """

    hidden: int | None = None
    forget_bias: float = 1.0
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if self.hidden is not None and self.hidden < 1:
            raise UsageError(f"hidden is {self.hidden}; expected at least 1 cell, or none for as many as the width")
        super().__post_init__()

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> LSTMState:
        """The state before the first token; it has the same size for every `length`."""
        zeros = jnp.zeros((batch, self.hidden or width), jnp.promote_types(dtype, jnp.float32))
        return LSTMState(h=zeros, c=zeros, last_id=jnp.zeros((batch,), jnp.int32))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: LSTMState | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time width"], LSTMState | None]:
        batch, time, width = x.shape
        hidden = self.hidden or width
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        lecun = nn.initializers.lecun_normal()
        # What the inputs say to the gates, for all times in one product; only the recurrent one has to wait its turn.
        heard = Dense(4 * hidden, False, initial=lecun, **dtypes, parent=self, name="input")(x)
        recurrent = Dense(4 * hidden, False, initial=_orthogonal_gates, **dtypes, parent=self, name="recurrent")
        u, _ = recurrent.weights(hidden)
        precise = jnp.promote_types(self.dtype, jnp.float32)
        starts = {"i": 0.0, "f": self.forget_bias, "g": 0.0, "o": 0.0}
        biases = [
            self.param(f"bias_{gate}", nn.initializers.constant(start), (hidden,), self.parameter_dtype)
            for gate, start in starts.items()
        ]
        b = jnp.concatenate(biases).astype(precise)

        def step(carry, now):
            h, c, last = carry
            heard, id = now
            if id is not None:
                keep = ((id == last) | (id == 0))[:, None]
                h, c = jnp.where(keep, h, 0), jnp.where(keep, c, 0)
            gates = heard.astype(precise) + (h.astype(self.dtype) @ u).astype(precise) + b
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            new_c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            new_h = nn.sigmoid(o) * jnp.tanh(new_c)
            if id is None:
                return (new_h, new_c, last), new_h
            real = (id != 0)[:, None]
            carry = (jnp.where(real, new_h, h), jnp.where(real, new_c, c), jnp.where(id == 0, last, id))
            return carry, jnp.where(real, new_h, 0)

        begin = self.initial_state(batch, time, width, precise) if state is None else state
        ids = segment_ids
        if ids is None and state is not None:
            ids = jnp.ones((batch, time), begin.last_id.dtype)
        elif ids is not None:
            ids = ids.astype(begin.last_id.dtype)
        carry = (begin.h.astype(precise), begin.c.astype(precise), begin.last_id)
        along = (heard.swapaxes(0, 1), None if ids is None else ids.T)
        (h, c, last), out = jax.lax.scan(step, carry, along)

        y = out.swapaxes(0, 1).astype(self.dtype)
        if hidden != width:
            scaled = lambda *arguments: lecun(*arguments) * self.residual_scale
            y = Dense(width, False, initial=scaled, **dtypes, parent=self, name="output")(y)
        if state is None:
            return y, None
        return y, LSTMState(h=h.astype(begin.h.dtype), c=c.astype(begin.c.dtype), last_id=last)


def _orthogonal_gates(key: Array, shape: tuple[int, int], dtype: DType) -> Array:
    """An orthogonal matrix for each gate, side by side (Saxe et al. 2014, 1312.6120): h keeps its norm at first."""
    hidden = shape[0]
    one = lambda k: nn.initializers.orthogonal()(k, (hidden, hidden), jnp.float32)
    return jnp.concatenate(jax.vmap(one)(jax.random.split(key, 4)), axis=1).astype(dtype)
