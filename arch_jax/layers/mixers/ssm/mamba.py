"""Mamba as a sequence mixer: S6, the selective state space, in a block with a short convolution and a gate."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import unknown
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense, joint
from arch_jax.layers.mixers.contract import Mixer, adapted, check_state, real_only, runs
from arch_jax.layers.mixers.short_convolution import ShortConvolution
from arch_jax.layers.mixers.ssm.s4 import GLU, S4D, check_fields, check_steps, uniform
from arch_jax.layers.sequence_position import at_start
from arch_jax.ops.recurrence import selective_scan as ops
from arch_jax.ops.recurrence.linear import check_chunk
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import Count


@flax.struct.dataclass
class S6State:
    """Recurrent state; its size does not depend on the sequence length.

    Attributes:
      h: the channels' states over the current run, "batch state channels".
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    h: Any
    at: Any


@flax.struct.dataclass
class MambaState:
    """Recurrent state; its size does not depend on the sequence length.

    Attributes:
      h: the inner channels' states over the current run, "batch state channels".
      convolution: the latest tokens, `ops.causal_convolution.ConvolutionState`.
      at: position of each row, a `SequencePosition`.
    """

    h: Any
    convolution: Any
    at: Any


@flax.struct.dataclass
class MambaBlockState:
    """As `MambaState`, with the state of the mixer that replaces S6.

    Attributes:
      inner: that state.
      convolution: the latest tokens, `ops.causal_convolution.ConvolutionState`.
      at: position of each row, a `SequencePosition`.
    """

    inner: Any
    convolution: Any
    at: Any


def step_bias(least: float, most: float, floor: float) -> Callable:
    """The initial bias before the softplus: step sizes drawn from [least, most] by ratio, and at least `floor`.

    softplus^-1(y) = y + log(1 - e^-y) (arXiv 2312.00752, section 3.6).
    """

    def initial(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        logarithm = jax.random.uniform(key, shape, jnp.float32, math.log(least), math.log(most))
        steps = jnp.maximum(jnp.exp(logarithm), floor)
        return (steps + jnp.log(-jnp.expm1(-steps))).astype(dtype)

    return initial


class SelectiveSSM(nn.Module):
    """S6: a state space for each channel whose Delta, B and C depend on the token (2312.00752, algorithm 2).

        B = u W_B,   C = u W_C,   Delta = softplus(u W_low W_Delta + b_Delta),   A = -exp(A_log)
        h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t,   y_t = C_t h_t + D u_t

    A starts as S4D-Real, A_n = -n; D as 1.

    Attributes:
      state: N, numbers of the state of each channel.
      rank: rank of the projection to Delta.
      step_min: the smallest step size at the start.
      step_max: the largest.
      step_floor: lower bound of the step sizes.
      step_scale: factor on the initial W_Delta.
      step_initial: its initializer: "random", uniform in +- rank^-1/2, or "constant", rank^-1/2.
      form: algorithm of the scan: "auto", "recurrent", "chunked" or "associative".
      chunk: tokens between the states that the gradient keeps.
      dtype: of the projections; step sizes and states are at least float32.
      parameter_dtype: of the parameters.
    """

    state: int
    rank: int
    step_min: float = 0.001
    step_max: float = 0.1
    step_floor: float = 1e-4
    step_scale: float = 1.0
    step_initial: str = "random"
    form: str = "auto"
    chunk: int = 32
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        u: Float[Array, "batch time channels"],
        run: Int[Array, "batch time"] | None = None,
        carried: ops.ScanState | None = None,
    ) -> tuple[Float[Array, "batch time channels"], ops.ScanState]:
        """y, 0 at padding, and the state after the last token."""
        channels = u.shape[2]
        precise = jnp.promote_types(self.dtype, jnp.float32)
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        sizes = {"delta_low": self.rank, "B": self.state, "C": self.state}
        layers = [
            Dense(features, False, initial=uniform(channels**-0.5), **dtypes, parent=self, name=name)
            for name, features in sizes.items()
        ]
        low, B, C = joint(u, layers) if carried is None else [layer(u) for layer in layers]
        std = self.rank**-0.5 * self.step_scale
        draw = nn.initializers.constant(std) if self.step_initial == "constant" else uniform(std)
        to_delta = Dense(channels, False, initial=draw, **dtypes, parent=self, name="delta")
        bias = step_bias(self.step_min, self.step_max, self.step_floor)
        b = self.param("delta_bias", bias, (channels,), self.parameter_dtype).astype(precise)
        delta = nn.softplus(to_delta(low).astype(precise) + b)
        count = lambda _, shape, dtype: jnp.broadcast_to(jnp.log1p(jnp.arange(shape[1])), shape).astype(dtype)
        A = -jnp.exp(self.param("A_log", count, (channels, self.state), self.parameter_dtype).astype(precise))
        D = self.param("D", nn.initializers.ones, (channels,), self.parameter_dtype).astype(precise)
        settings = {"run": run, "state": carried, "form": self.form, "chunk": self.chunk}
        return ops.selective_scan(u, delta, A, B, C, D, **settings)


def _ssm(mixer: nn.Module, width: int) -> SelectiveSSM:
    """The state space of S6 or Mamba in a residual stream of `width`."""
    given = ("step_min", "step_max", "step_floor", "step_scale", "step_initial", "form", "chunk")
    settings = {name: getattr(mixer, name) for name in (*given, "dtype", "parameter_dtype")}
    return SelectiveSSM(mixer.state, mixer.rank(width), **settings, parent=mixer, name="ssm")


def _check_s6(mixer: nn.Module, name: str) -> None:
    check_fields(mixer, name, "state", "step_rank")
    check_steps(mixer, name)
    check_chunk(mixer.chunk, name)
    if mixer.form not in ops.FORMS:
        raise unknown(f"form of {name}", mixer.form, ops.FORMS)
    if mixer.step_initial not in ("random", "constant"):
        raise unknown(f"step_initial of {name}", mixer.step_initial, ("random", "constant"))


@component("s6", kind="mixer")
class S6(nn.Module):
    """The selective state space alone, where S4 stands in other models (2312.00752, table 1), and a linear unit.

        out = W_1 gelu(y) * sigmoid(W_2 gelu(y)),   y = S6(x)

    Attributes:
      state: N, numbers of the state of each channel.
      step_rank: rank of the projection to Delta; None is width / 16, rounded up.
      step_min: the smallest step size at the start.
      step_max: the largest.
      step_floor: lower bound of the step sizes.
      step_scale: factor on the initial W_Delta.
      step_initial: its initializer: "random", uniform in +- rank^-1/2, or "constant", rank^-1/2.
      form: algorithm of the scan, all with the same result: "auto", "recurrent", "chunked" or "associative".
      chunk: tokens between the states that the gradient keeps.
      glu: whether the gated linear unit follows; without it the output is y.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; step sizes and states are at least float32.
      parameter_dtype: of the parameters.
    """

    state: int = 16
    step_rank: int | None = None
    step_min: float = 0.001
    step_max: float = 0.1
    step_floor: float = 1e-4
    step_scale: float = 1.0
    step_initial: str = "random"
    form: str = "auto"
    chunk: int = 32
    glu: bool = True
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        _check_s6(self, "s6")
        super().__post_init__()

    def rank(self, width: int) -> int:
        """The rank of the projection to Delta."""
        return self.step_rank or math.ceil(width / 16)

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> S6State:
        """The state before the first token; it has the same size for every `length`."""
        begin = ops.initial_state(batch, self.state, width, dtype)
        return S6State(begin.h, at_start(batch))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Any = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time width"], Any]:
        x = read_where_real(x, segment_ids)
        check_state(state, S6State, x.shape[0], "s6")
        run, _, after = runs(x, segment_ids, state)
        carried = None if state is None else ops.ScanState(state.h, state.at.last_run)
        y, carried = _ssm(self, x.shape[2])(x.astype(self.dtype), run, carried)
        if self.glu:
            y = GLU(self.residual_scale, self.dtype, self.parameter_dtype, parent=self, name="glu")(y)
        return real_only(y, run), None if state is None else S6State(carried.h, after)


class _Block(nn.Module):
    """Mamba's block (2312.00752, figure 3) around any mixer; a subclass gives `mix` and `inner_state`."""

    name_of_mixer: ClassVar[str] = ""
    state_class: ClassVar[type] = MambaState

    expand: int = 2
    convolution: Count = 4
    bias: bool = False
    convolution_bias: bool = True
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_fields(self, self.name_of_mixer, "expand", "convolution")
        super().__post_init__()

    def inner_state(self, batch: int, length: int, width: int, dtype: DType) -> Any:
        """The inner mixer's state before the first token."""
        raise TypeError(f"{type(self).__name__} must define its state")

    def mix(self, u: Array, width: int, run: Array | None, segment_ids: Array | None, state: Any) -> tuple[Array, Any]:
        """Mixes u, for a residual stream of `width`, from `inner_state`."""
        raise TypeError(f"{type(self).__name__} must define how it mixes")

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> Any:
        """The state before the first token."""
        convolution = ShortConvolution(self.convolution, parent=None).initial_state(batch, self.expand * width, dtype)
        return self.state_class(self.inner_state(batch, length, width, dtype), convolution, at_start(batch))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: Any = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time width"], Any]:
        x = read_where_real(x, segment_ids)
        width = x.shape[2]
        inner = self.expand * width
        check_state(state, self.state_class, x.shape[0], self.name_of_mixer)
        run, _, after = runs(x, segment_ids, state)
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        dense = lambda name, features, fan_in, gain=1.0, last=False: Dense(
            features, self.bias, initial=uniform(fan_in**-0.5, gain), to_stream=last, **dtypes, parent=self, name=name
        )
        layers = [dense(name, inner, width) for name in ("input", "gate")]
        u, z = joint(x, layers) if state is None else (layer(x) for layer in layers)
        short = ShortConvolution(self.convolution, self.convolution_bias, **dtypes, parent=self, name="convolution")
        u, latest = short(u, run, None if state is None else state.convolution)
        y, mixed = self.mix(nn.silu(u), width, run, segment_ids, state)
        y = dense("output", width, inner, self.residual_scale, last=True)(y * nn.silu(z))
        y = real_only(y, run) if self.bias else y  # else the output at padding is 0 as it is
        return y, None if state is None else self.state_class(mixed, latest, after)


@component("mamba", kind="mixer")
class Mamba(_Block):
    """Mamba (Gu and Dao 2023, 2312.00752): S6 in a block with a short convolution and a gate (figure 3).

        u = silu(conv(x W_in)),   z = x W_z,   y = (S6(u) * silu(z)) W_out

    A decoder of it has no feed-forward part.

    Attributes:
      state: N, numbers of the state of each channel.
      step_rank: rank of the projection to Delta; None is width / 16, rounded up.
      step_min: the smallest step size at the start.
      step_max: the largest.
      step_floor: lower bound of the step sizes.
      step_scale: factor on the initial W_Delta.
      step_initial: its initializer: "random", uniform in +- rank^-1/2, or "constant", rank^-1/2.
      form: algorithm of the scan, all with the same result: "auto", "recurrent", "chunked" or "associative".
      chunk: tokens between the states that the gradient keeps.
      expand: channels of the inner sequence, as a multiple of the width.
      convolution: tokens that the short convolution looks at.
      bias: whether the projections in and out have biases.
      convolution_bias: whether the convolution has one.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; step sizes and states are at least float32.
      parameter_dtype: of the parameters.
    """

    name_of_mixer: ClassVar[str] = "mamba"

    state: int = 16
    step_rank: int | None = None
    step_min: float = 0.001
    step_max: float = 0.1
    step_floor: float = 1e-4
    step_scale: float = 1.0
    step_initial: str = "random"
    form: str = "auto"
    chunk: int = 32

    def __post_init__(self) -> None:
        _check_s6(self, "mamba")
        super().__post_init__()

    def rank(self, width: int) -> int:
        """The rank of the projection to Delta."""
        return self.step_rank or math.ceil(width / 16)

    def inner_state(self, batch: int, length: int, width: int, dtype: DType) -> Array:
        """The states of all channels; of the same size for every `length`."""
        return ops.initial_state(batch, self.state, self.expand * width, dtype).h

    def mix(self, u: Array, width: int, run: Array | None, segment_ids: Array | None, state: Any) -> tuple[Array, Any]:
        """S6."""
        carried = None if state is None else ops.ScanState(state.h, state.at.last_run)
        y, carried = _ssm(self, width)(u, run, carried)
        return y, carried.h


@component("mamba_block", kind="mixer")
class MambaBlock(_Block):
    """Mamba's block with another mixer in place of S6, as in the paper's ablations (table 1 and section 4.6).

        u = silu(conv(x W_in)),   z = x W_z,   y = (inner(u) * silu(z)) W_out

    Attributes:
      inner: the mixer, at a width of `expand` times that of the block: S4 without its linear unit by default.
      expand: channels of the inner sequence, as a multiple of the width.
      convolution: tokens that the short convolution looks at.
      bias: whether the projections in and out have biases.
      convolution_bias: whether the convolution has one.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; step sizes and states are at least float32.
      parameter_dtype: of the parameters.
    """

    name_of_mixer: ClassVar[str] = "mamba_block"
    state_class: ClassVar[type] = MambaBlockState

    inner: Mixer = S4D(glu=False)

    @property
    def causal(self) -> bool:
        """True if a token sees only itself and earlier ones."""
        return getattr(self.inner, "causal", True)

    def inner_state(self, batch: int, length: int, width: int, dtype: DType) -> Any:
        """That of the mixer."""
        return self.inner.initial_state(batch, length, self.expand * width, dtype)

    def mix(self, u: Array, width: int, run: Array | None, segment_ids: Array | None, state: Any) -> tuple[Array, Any]:
        """The mixer."""
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        inner = adapted(self.inner, **dtypes).clone(parent=self, name="mixer")
        return inner(u, segment_ids, None if state is None else state.inner)
