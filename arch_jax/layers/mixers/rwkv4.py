"""RWKV-4 as two sequence mixers: time mixing, and channel mixing, which looks back by one token (2305.13048).

A layer of the paper is a residual block of each: `Decoder(mixer=(RWKV4(), RWKV4Channel()), feed_forward=None)` with
twice the depth.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import Place, check_state, runs
from arch_jax.layers.sequence_position import at_start
from arch_jax.ops.recurrence import wkv as ops
from arch_jax.ops.recurrence.linear import check_chunk, resets
from arch_jax.ops.segments import read_where_real


@flax.struct.dataclass
class ShiftState:
    """Recurrent state of a token shift.

    Attributes:
      x: the last token, "batch width".
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    x: Any
    at: Any


@flax.struct.dataclass
class RWKV4State(ShiftState):
    """Recurrent state of time mixing: beside the last token, the two sums of WKV as multiples of e^m.

    Attributes:
      x: the last token, "batch width".
      at: position of each row, a `SequencePosition`.
      a: sum of exp(k) v, "batch hidden".
      b: sum of exp(k), "batch hidden".
      m: the largest exponent in them, "batch hidden".
    """

    a: Any
    b: Any
    m: Any


def shift_state(batch: int, width: int, dtype: DType) -> dict[str, Any]:
    """The parts of a `ShiftState` before the first token."""
    return {"x": jnp.zeros((batch, width), dtype), "at": at_start(batch)}


def shifted(x: Array, segment_ids: Array | None, state: ShiftState | None) -> tuple[Array, Any, Any, dict[str, Any]]:
    """Each token's predecessor in its run; masks of run starts and of real tokens; the parts of the next `ShiftState`.

    The middle two are None where every row is one run from its beginning.
    """
    run, position, after = runs(x, segment_ids, state)
    starts, real = (None, None) if run is None else resets(run, position)
    before = None if state is None else state.x
    earlier, last = ops.token_shift(x, before, starts, real)
    return earlier, starts, real, {"x": last if state is None else last.astype(state.x.dtype), "at": after}


def ratios(place: Place | None) -> tuple[Any, Any]:
    """(from 0 at the first layer to 1 at the last, from 1 at the first layer to almost 0 at the last)."""
    layer, layers = (0, 1) if place is None else place
    return layer / max(layers - 1, 1), 1 - layer / layers


def orthogonal(key: Array, shape: tuple[int, int], dtype: DType) -> Array:
    """As in the authors' code: orthogonal, times the root of outputs / inputs where there are more outputs."""
    return nn.initializers.orthogonal(max(1.0, shape[1] / shape[0]) ** 0.5)(key, shape, dtype)


def check_hidden(hidden: int | None) -> None:
    """Refuses a layer without channels.

    Raises:
      UsageError: `hidden` is below 1.
    """
    if hidden is not None and hidden < 1:
        raise UsageError(f"hidden is {hidden}; expected at least 1 channel, or none for the published number")


class TokenShiftMixer(nn.Module):
    """Base of RWKV's mixers: parameters with given initial values, and the mix of a token with its predecessor.

    A subclass has the fields `dtype` and `parameter_dtype`.
    """

    #: Its initial parameters depend on the layer's place in the stack.
    placed: ClassVar[bool] = True
    #: Names of the layers whose outputs are added to the residual stream.
    last: ClassVar[tuple[str, ...]] = ("output",)

    def starting(self, name: str, value: Callable[[], Array], dtype: DType | None = None) -> Array:
        """A parameter that starts from `value()`, in the dtype of the computation or the given one."""
        parameter = self.param(name, lambda _: jnp.asarray(value()).astype(self.parameter_dtype))
        return parameter.astype(self.dtype if dtype is None else dtype)

    def dense(self, name: str, features: int, initial: Callable = nn.initializers.zeros) -> Dense:
        """A linear layer without bias."""
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        return Dense(features, False, initial=initial, to_stream=name in self.last, **dtypes, parent=self, name=name)

    def mixed(self, name: str, x: Array, earlier: Array, start: Callable[[Array], Array]) -> Array:
        """mu * x_t + (1 - mu) * x_{t-1}, with a mu for each channel that starts from `start(channel / width)`."""
        mu = self._mu(name, x, start)
        return x * mu + earlier.astype(x.dtype) * (1 - mu)

    def drifted(self, name: str, x: Array, earlier: Array, start: Callable[[Array], Array]) -> Array:
        """x_t + mu * (x_{t-1} - x_t), with a mu that starts like that of `mixed`."""
        return x + (earlier.astype(x.dtype) - x) * self._mu(name, x, start)

    def _mu(self, name, x, start):
        width = x.shape[-1]
        return self.starting(name, lambda: start(jnp.arange(width) / width))


@component("rwkv4", kind="mixer")
class RWKV4(TokenShiftMixer):
    """RWKV-4's time mixing (Peng et al. 2023, 2305.13048, equations 11 to 13, 16 and 17):

        r, k, v = (mu_r x_t + (1 - mu_r) x_{t-1}) W_r, ... W_k, ... W_v
        wkv_t = (sum_{i<t} e^{-(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same sum without v)
        y_t = (sigmoid(r_t) * wkv_t) W_o

    where w = exp(decay) and u = bonus are vectors. Parameters start as in the authors' training code: by channel and by
    the layer's place, and the three matrices other than W_v at 0, so that a block is the identity at first.

    Attributes:
      hidden: channels of k, v and r; None is as many as the width.
      form: of the recurrence, all with the same result: "auto", "sequential", "chunked" or "associative".
      chunk: tokens in a chunk of the chunked form.
      dtype: of the computation; the sums are at least float32.
      parameter_dtype: of the parameters.
    """

    hidden: int | None = None
    form: str = "auto"
    chunk: int = 64
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_hidden(self.hidden)
        check_chunk(self.chunk, "rwkv4")
        super().__post_init__()

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> RWKV4State:
        """The state before the first token; it has the same size for every `length`."""
        sums = ops.wkv_initial_state(batch, self.hidden or width, dtype)
        return RWKV4State(**shift_state(batch, width, dtype), **sums._asdict())

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Any = None,
        train: bool = False,
        place: Place | None = None,
    ) -> tuple[Float[Array, "batch time width"], RWKV4State | None]:
        """The mixer's contract; the initial parameters depend on `place`, (layer, layers)."""
        x = read_where_real(x, segment_ids)
        batch, _, width = x.shape
        check_state(state, RWKV4State, batch, "rwkv4")
        hidden = self.hidden or width
        x = x.astype(self.dtype)
        earlier, starts, real, parts = shifted(x, segment_ids, state)
        rising, falling = ratios(place)
        x_k = self.mixed("mix_key", x, earlier, lambda c: c**falling)
        x_v = self.mixed("mix_value", x, earlier, lambda c: c**falling + 0.3 * rising)
        x_r = self.mixed("mix_receptance", x, earlier, lambda c: c ** (0.5 * falling))
        k = self.dense("key", hidden)(x_k)
        v = self.dense("value", hidden, orthogonal)(x_v)
        r = self.dense("receptance", hidden)(x_r)

        precise = jnp.promote_types(self.dtype, jnp.float32)
        channel = jnp.arange(hidden)
        across = channel / max(hidden - 1, 1)
        decay = self.starting("decay", lambda: -5 + 8 * across ** (0.7 + 1.3 * rising), precise)
        bonus = self.starting("bonus", lambda: math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1), precise)

        sums = None if state is None else ops.WKVState(state.a, state.b, state.m)
        settings = {"starts": starts, "real": real, "form": self.form, "chunk": self.chunk}
        wkv, sums = ops.wkv(k, v, -jnp.exp(decay), bonus, state=sums, **settings)
        y = self.dense("output", width)(nn.sigmoid(r) * wkv.astype(self.dtype))
        if real is not None:
            y = jnp.where(real[..., None], y, 0)
        if state is None:
            return y, None
        kept = {name: new.astype(getattr(state, name).dtype) for name, new in sums._asdict().items()}
        return y, RWKV4State(**parts, **kept)


class ChannelMixer(TokenShiftMixer):
    """Base of RWKV's channel mixings: feed-forward parts that look back by one token, which makes them mixers.

    A subclass defines `channel`.

    Attributes:
      hidden: channels of k; None is four times the width.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    name_of_mixer: ClassVar[str] = ""
    last: ClassVar[tuple[str, ...]] = ("value",)

    hidden: int | None = None
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_hidden(self.hidden)
        super().__post_init__()

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> ShiftState:
        """The state before the first token; it has the same size for every `length`."""
        return ShiftState(**shift_state(batch, width, dtype))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Any = None,
        train: bool = False,
        place: Place | None = None,
    ) -> tuple[Float[Array, "batch time width"], ShiftState | None]:
        """The mixer's contract; the initial parameters depend on `place`, (layer, layers)."""
        x = read_where_real(x, segment_ids)
        batch, _, width = x.shape
        check_state(state, ShiftState, batch, self.name_of_mixer)
        x = x.astype(self.dtype)
        earlier, _, real, parts = shifted(x, segment_ids, state)
        y = self.channel(x, earlier, self.hidden or 4 * width, ratios(place)[1])
        if real is not None:
            y = jnp.where(real[..., None], y, 0)
        return y, None if state is None else ShiftState(**parts)

    def channel(self, x: Array, earlier: Array, hidden: int, falling: float) -> Array:
        """y from each token and the one before; `falling` goes from 1 at the first layer to almost 0 at the last."""
        raise TypeError(f"{type(self).__name__} must define `channel`")


@component("rwkv4_channel", kind="mixer")
class RWKV4Channel(ChannelMixer):
    """RWKV-4's channel mixing (2305.13048, equations 14, 15 and 18):

        r, k = (mu_r x_t + (1 - mu_r) x_{t-1}) W_r, (mu_k x_t + (1 - mu_k) x_{t-1}) W_k
        y_t = sigmoid(r_t) * (relu(k_t)^2 W_v)

    W_r and W_v start at 0.

    Attributes:
      hidden: channels of k; None is four times the width.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    name_of_mixer: ClassVar[str] = "rwkv4_channel"

    def channel(self, x, earlier, hidden, falling):
        x_k = self.mixed("mix_key", x, earlier, lambda c: c**falling)
        x_r = self.mixed("mix_receptance", x, earlier, lambda c: c**falling)
        k = self.dense("key", hidden, orthogonal)(x_k)
        r = self.dense("receptance", x.shape[-1])(x_r)
        return nn.sigmoid(r) * self.dense("value", x.shape[-1])(jnp.square(nn.relu(k)))
