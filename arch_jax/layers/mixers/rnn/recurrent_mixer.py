"""Base of recurrences as sequence mixers: a state of fixed size takes the place of a cache."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import check_state
from arch_jax.layers.sequence_position import advanced, at_start
from arch_jax.ops.recurrence.cells import recurrent_loop
from arch_jax.ops.recurrence.linear import resets
from arch_jax.ops.segments import read_where_real


@flax.struct.dataclass
class RNNState:
    """Recurrent state of a recurrence without cells (Elman's network, the GRU).

    Attributes:
      h: its output at the last token, "batch hidden".
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    h: Any
    at: Any


@flax.struct.dataclass
class LSTMState:
    """Recurrent state of an LSTM.

    Attributes:
      h: its output at the last token, "batch hidden".
      c: its cells, "batch hidden".
      at: position of each row, a `SequencePosition`.
    """

    h: Any
    c: Any
    at: Any


class RecurrentMixer(nn.Module):
    """Base of the recurrences that are sequential in time.

    x_t W is computed for all times at once, h_{t-1} U step by step. Where `hidden` is not the width there is one
    more matrix, y_t = h_t V, since the residual stream has the width; where it is, None is added, so that the layer is
    the published one. A subclass names its `gates`, which lie side by side in W and U, and defines the `cell`.

    Attributes:
      hidden: units; None is as many as the width.
      residual_scale: factor on the initial V, set by a decoder that scales such weights with its depth.
      dtype: of the computation; gates and h are at least float32.
      parameter_dtype: of the parameters.
    """

    hidden: int | None = None
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    gates: ClassVar[int] = 1
    state_class: ClassVar[type] = RNNState

    def __post_init__(self) -> None:
        if self.hidden is not None and self.hidden < 1:
            raise UsageError(f"hidden is {self.hidden}; expected at least 1 cell, or none for as many as the width")
        super().__post_init__()

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> Any:
        """The state before the first token; it has the same size for every `length`."""
        zeros = jnp.zeros((batch, self.hidden or width), jnp.promote_types(dtype, jnp.float32))
        carried = {"c": zeros} if self.state_class is LSTMState else {}
        return self.state_class(h=zeros, **carried, at=at_start(batch))

    def recurrent_initial(self) -> Callable:
        """Initializer of U."""
        return orthogonal_gates

    def cell(self, heard: Array, u: Array) -> tuple[Callable, Any, Array, Array, Any]:
        """The arguments of `recurrent_loop`: (step, its parameters, U, the term added to h U, other inputs a token)."""
        raise TypeError(f"{type(self).__name__} must define one step")

    def biases(self, starts: dict[str, float], hidden: int) -> list[Array]:
        """One a gate, in at least float32; `starts` maps names to initial values."""
        precise = jnp.promote_types(self.dtype, jnp.float32)
        draw = nn.initializers.constant
        return [
            self.param(name, draw(start), (hidden,), self.parameter_dtype).astype(precise)
            for name, start in starts.items()
        ]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Any = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time width"], Any]:
        x = read_where_real(x, segment_ids)
        batch, time, width = x.shape
        check_state(state, self.state_class, batch, type(self).__name__)
        hidden = self.hidden or width
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        lecun = nn.initializers.lecun_normal()
        heard = Dense(self.gates * hidden, False, initial=lecun, **dtypes, parent=self, name="input")(x)
        initial = self.recurrent_initial()
        recurrent = Dense(self.gates * hidden, False, initial=initial, **dtypes, parent=self, name="recurrent")
        precise = jnp.promote_types(self.dtype, jnp.float32)
        step, parameters, u, added, rest = self.cell(heard.astype(precise), recurrent.weights(hidden)[0])

        begin = self.initial_state(batch, time, width, precise) if state is None else state
        carry = tuple(getattr(begin, name).astype(precise) for name in ("h", "c") if hasattr(begin, name))
        if carry[0].shape != (batch, hidden):
            raise UsageError(f"the state has h of shape {carry[0].shape}; expected {(batch, hidden)}: batch, hidden")
        masks, at = None, begin.at
        if state is not None or segment_ids is not None:
            ids = jnp.ones((batch, time), jnp.int32) if segment_ids is None else segment_ids
            run, position, at = advanced(begin.at, ids)
            masks = tuple(mask.T[:, :, None] for mask in resets(run, position))
        along = jax.tree.map(lambda a: a.swapaxes(0, 1), (added, rest))
        carry, out = recurrent_loop(step, u, parameters, carry, *along, masks)

        y = out.swapaxes(0, 1).astype(self.dtype)
        if hidden != width:
            scaled = lambda *arguments: lecun(*arguments) * self.residual_scale
            y = Dense(width, False, initial=scaled, **dtypes, parent=self, name="output", to_stream=True)(y)
        if state is None:
            return y, None
        after = {name: new.astype(getattr(begin, name).dtype) for name, new in zip(("h", "c"), carry)}
        return y, self.state_class(**after, at=at)


def orthogonal_gates(key: Array, shape: tuple[int, int], dtype: DType) -> Array:
    """An orthogonal matrix for each gate, side by side (Saxe et al. 2014, 1312.6120): h keeps its norm at first."""
    hidden, width = shape
    one = lambda k: nn.initializers.orthogonal()(k, (hidden, hidden), jnp.float32)
    return jnp.concatenate(jax.vmap(one)(jax.random.split(key, width // hidden)), axis=1).astype(dtype)
