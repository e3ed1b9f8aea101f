"""Recurrences as sequence mixers: a state of fixed size takes the place of a cache. Elman's network and the LSTM."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import check_state
from arch_jax.ops.recurrence.linear import resets
from arch_jax.ops.segments import runs_and_positions


@flax.struct.dataclass
class RNNState:
    """What a recurrence without cells (Elman's network, the GRU) carries from token to token.

    Attributes:
      h: its output at the last token, "batch hidden".
      last_id: the last segment id, "batch".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    h: Any
    last_id: Any


@flax.struct.dataclass
class LSTMState:
    """What an LSTM carries from token to token.

    Attributes:
      h: its output at the last token, "batch hidden".
      c: its cells, "batch hidden".
      last_id: the last segment id, "batch".
    """

    h: Any
    c: Any
    last_id: Any


class RecurrentMixer(nn.Module):
    """What the recurrences share whose every step waits for the one before.

    x_t W is computed for all times at once; h_{t-1} U has to wait its turn. Where `hidden` is not the width there is a
    matrix more, y_t = h_t V, since the residual stream has the width; where it is, none is added, so that the layer is
    the published one. A subclass names its `gates`, which lie side by side in W and U, and says what `cell` does.

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
        return self.state_class(h=zeros, **carried, last_id=jnp.zeros((batch,), jnp.int32))

    def recurrent_initial(self) -> Callable:
        """The draw for U."""
        return orthogonal_gates

    def cell(self, heard: Array, u: Array) -> tuple[Callable, Any, Array, Array, Any]:
        """What `recurrent_loop` is given: (step, its parameters, U, what is added to h U, what else a token brings)."""
        raise TypeError(f"{type(self).__name__} must say what one step does")

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
        masks, last_id = None, begin.last_id
        if state is not None or segment_ids is not None:
            ids = jnp.ones((batch, time), jnp.int32) if segment_ids is None else segment_ids
            # The number of the run that goes on, and where in it the last token stood, make no difference here.
            run, position, after = runs_and_positions(ids, begin.last_id, *jnp.ones((2, batch), jnp.int32))
            last_id = after[0]
            masks = tuple(mask.T[:, :, None] for mask in resets(run, position))
        along = jax.tree.map(lambda a: a.swapaxes(0, 1), (added, rest))
        carry, out = recurrent_loop(step, u, parameters, carry, *along, masks)

        y = out.swapaxes(0, 1).astype(self.dtype)
        if hidden != width:
            scaled = lambda *arguments: lecun(*arguments) * self.residual_scale
            y = Dense(width, False, initial=scaled, **dtypes, parent=self, name="output")(y)
        if state is None:
            return y, None
        after = {name: new.astype(getattr(begin, name).dtype) for name, new in zip(("h", "c"), carry)}
        return y, self.state_class(**after, last_id=last_id)


@component("rnn", kind="mixer")
class RNN(RecurrentMixer):
    """Elman's simple recurrent network (1990), with y_t = h_t:

        h_t = f(x_t W + h_{t-1} U + b)

    as in `torch.nn.RNN` (whose two biases add up to b). h_0 is 0. With f = relu, U = 1 and b = 0 it starts as an
    accumulator, whose gradient neither grows nor vanishes (the IRNN of Le et al. 2015, 1504.00941).

    Attributes:
      hidden: units; None is as many as the width. Where it is not the width, a matrix V follows.
      residual_scale: factor on the initial V, set by a decoder that scales such weights with its depth.
      dtype: of the computation; h is at least float32.
      parameter_dtype: of the parameters.
      activation: f: "tanh" or "relu".
      initial: what U starts from: "orthogonal" (Saxe et al. 2014, 1312.6120) or "identity" (1504.00941).
      scale: factor on the initial U: below 1 forgets sooner (1504.00941, section 4.4: 0.01).
    """

    activation: str = "tanh"
    initial: str = "orthogonal"
    scale: float = 1.0

    def recurrent_initial(self) -> Callable:
        """Orthogonal, or the identity."""
        draws = {"orthogonal": orthogonal_gates, "identity": lambda key, shape, dtype: jnp.eye(*shape, dtype=dtype)}
        if self.initial not in draws:
            raise unknown("initial recurrent matrix", self.initial, draws)
        return lambda *arguments: draws[self.initial](*arguments) * self.scale

    def cell(self, heard, u):
        if self.activation not in _RNN_STEPS:
            raise unknown("activation of rnn", self.activation, _RNN_STEPS)
        (b,) = self.biases({"bias": 0.0}, heard.shape[-1])
        return _RNN_STEPS[self.activation], None, u, heard + b, None


@component("lstm", kind="mixer")
class LSTM(RecurrentMixer):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with forget gates (Gers et al. 2000), with y_t = h_t:

        i, f, g, o = x_t W + h_{t-1} U + b
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t)

    as in `torch.nn.LSTM` (whose two biases add up to b). h_0 and c_0 are 0. With peepholes (Gers et al. 2002, "Learning
    precise timing with LSTM recurrent networks", section 3) the gates see the cells too: i and f have p * c_{t-1}
    added, o has p * c_t, with p_i, p_f, p_o of one number a cell that start at 0.

    Attributes:
      hidden: cells; None is as many as the width. Where it is not the width, a matrix V follows.
      residual_scale: factor on the initial V, set by a decoder that scales such weights with its depth.
      dtype: of the computation; gates, h and c are at least float32.
      parameter_dtype: of the parameters.
      forget_bias: what the forget gates' share of b starts from: 1 remembers at first (Jozefowicz et al. 2015).
      peepholes: whether there are any.
    """

    forget_bias: float = 1.0
    peepholes: bool = False

    gates: ClassVar[int] = 4
    state_class: ClassVar[type] = LSTMState

    def cell(self, heard, u):
        hidden = u.shape[0]
        starts = {"bias_i": 0.0, "bias_f": self.forget_bias, "bias_g": 0.0, "bias_o": 0.0}
        b = jnp.concatenate(self.biases(starts, hidden))
        peepholes = None
        if self.peepholes:
            peepholes = self.biases(dict.fromkeys(("peephole_i", "peephole_f", "peephole_o"), 0.0), hidden)
        return lstm_update, peepholes, u, heard + b, None


def lstm_update(peepholes, carry, gates, _):
    """A step for `recurrent_loop`: (h, c) from the sums of i, f, g and o; see `LSTM`. `peepholes` may be None."""
    _, c = carry
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    if peepholes is not None:
        i, f = i + peepholes[0] * c, f + peepholes[1] * c
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
    if peepholes is not None:
        o = o + peepholes[2] * c
    return nn.sigmoid(o) * jnp.tanh(c), c


_RNN_STEPS = {
    "tanh": lambda _, carry, heard, __: (jnp.tanh(heard),),
    "relu": lambda _, carry, heard, __: (nn.relu(heard),),
}


def orthogonal_gates(key: Array, shape: tuple[int, int], dtype: DType) -> Array:
    """An orthogonal matrix for each gate, side by side (Saxe et al. 2014, 1312.6120): h keeps its norm at first."""
    hidden, width = shape
    one = lambda k: nn.initializers.orthogonal()(k, (hidden, hidden), jnp.float32)
    return jnp.concatenate(jax.vmap(one)(jax.random.split(key, width // hidden)), axis=1).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recurrent_loop(step, u, parameters, carry, added, rest, masks):
    """A loop over time with one product a step, h_{t-1} U, whose gradient in U is one product after the loop.

    Automatic differentiation adds up U's gradient step by step, which reads and writes a matrix of U's size at each.
    A step of `_BY_HAND` without parameters is pulled back by its own equations, which keep less and compute less.

    Args:
      step: (parameters, carry, added_t + h U, rest_t) -> carry; a function of the module, not a closure.
      u: U, "hidden gates".
      parameters: a tree of what each step is given alike.
      carry: a tuple of arrays "batch hidden", h first.
      added: "time batch gates".
      rest: a tree of arrays "time batch ...".
      masks: (starts, real) "time batch 1": where the carry becomes 0 before the step, and where it changes at all;
        None for nowhere and everywhere.

    Returns:
      (the carry after the last step, h of every step: "time batch hidden", 0 where nothing is real). Reverse-mode
      derivatives only.
    """
    carry, (out, _) = _scan(step, u, parameters, carry, added, rest, masks)
    return carry, out


def _scan(step, u, parameters, carry, added, rest, masks):
    def body(carry, now):
        added, rest, mask = now
        if mask is not None:
            carry = tuple(jnp.where(mask[0], 0, part) for part in carry)
        h = carry[0]
        new = step(parameters, carry, added + (h.astype(u.dtype) @ u).astype(added.dtype), rest)
        if mask is None:
            return new, (new[0], None)
        new = tuple(jnp.where(mask[1], now, old) for now, old in zip(new, carry))
        return new, (jnp.where(mask[1], new[0], 0), h)

    return lax.scan(body, carry, (added, rest, masks))


def _loop_forward(step, u, parameters, carry, added, rest, masks):
    if step in _BY_HAND and parameters is None and rest is None:
        after, kept, seen = _scan_keeping(_BY_HAND[step][0], u, carry, added, masks)
        return after, (None, kept, masks, seen, u)

    # U is a constant here: what arrives at `added` is all that its gradient needs beside h.
    def loop(*arguments):
        after, (out, seen) = _scan(step, u, *arguments, masks)
        return (after, out), seen

    after, pull, seen = jax.vjp(loop, parameters, carry, added, rest, has_aux=True)
    if seen is None:
        seen = jnp.concatenate([carry[0][None], after[1]])[:-1]
    return after, (pull, None, None, seen, u)


def _loop_backward(step, saved, cotangents):
    pull, kept, masks, seen, u = saved
    if pull is None:
        parameters, rest = None, None
        carry, added = _scan_back(_BY_HAND[step][1], u, kept, masks, *cotangents)
    else:
        parameters, carry, added, rest = pull(cotangents)
    d_u = jnp.einsum("tbh,tbg->hg", seen.astype(u.dtype), added.astype(u.dtype), preferred_element_type=added.dtype)
    return d_u.astype(u.dtype), parameters, carry, added, rest, None


recurrent_loop.defvjp(_loop_forward, _loop_backward)


def _scan_keeping(forward, u, carry, added, masks):
    """`_scan`, with what each step keeps for its own gradient: ((carry, h), kept, the h that each step saw)."""

    def body(carry, now):
        added, mask = now
        if mask is not None:
            carry = tuple(jnp.where(mask[0], 0, part) for part in carry)
        h = carry[0]
        new, kept = forward(carry, added + (h.astype(u.dtype) @ u).astype(added.dtype))
        if mask is None:
            return new, (new[0], kept, None)
        new = tuple(jnp.where(mask[1], now, old) for now, old in zip(new, carry))
        return new, (jnp.where(mask[1], new[0], 0), kept, h)

    after, (out, kept, seen) = lax.scan(body, carry, (added, masks))
    if seen is None:
        seen = jnp.concatenate([carry[0][None], out])[:-1]
    return (after, out), kept, seen


def _scan_back(backward, u, kept, masks, carry, out):
    """The gradients of `_scan_keeping`: (in the carry before the first step, in `added`)."""

    def body(carry, now):
        out, kept, mask = now
        old = None
        if mask is not None:  # where nothing is real, the carry passed by, and 0 was the output
            old = tuple(jnp.where(mask[1], 0, part) for part in carry)
            carry = tuple(jnp.where(mask[1], part, 0) for part in carry)
            out = jnp.where(mask[1], out, 0)
        h, *others = carry
        others, gates = backward((h + out, *others), kept)
        h = lax.dot_general(gates.astype(u.dtype), u, (((1,), (1,)), ((), ()))).astype(gates.dtype)
        before = (h, *others)
        if mask is not None:
            before = tuple(jnp.where(mask[0], 0, part + past) for part, past in zip(before, old))
        return before, gates

    return lax.scan(body, carry, (out, kept, masks), reverse=True)


def _lstm_forward(carry, gates):
    """`lstm_update` without peepholes, and what its gradient needs: gates, the cells before, tanh of those after.

    The gates lie side by side as they came, so that a step keeps three arrays and not seven.
    """
    _, before = carry
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i, f, g, o = nn.sigmoid(i), nn.sigmoid(f), jnp.tanh(g), nn.sigmoid(o)
    c = f * before + i * g
    squashed = jnp.tanh(c)
    return (o * squashed, c), (jnp.concatenate([i, f, g, o], axis=-1), before, squashed)


def _lstm_backward(carry, kept):
    """(gradients of what a step was given but h, that of the sums of its gates), given those of (h, c) after it."""
    h, c = carry
    gates, before, squashed = kept
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = c + h * o * (1 - squashed * squashed)
    sums = (c * g * i * (1 - i), c * before * f * (1 - f), c * i * (1 - g * g), h * squashed * o * (1 - o))
    return (c * f,), jnp.concatenate(sums, axis=-1)


#: Steps with equations of their own for the gradient: (forward, backward). Held against automatic differentiation.
_BY_HAND = {lstm_update: (_lstm_forward, _lstm_backward)}
