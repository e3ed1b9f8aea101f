"""S4 and S4D as sequence mixers: a convolution with the kernel of a state space, or its recurrence."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense, joint
from arch_jax.layers.mixers.contract import check_state, real_only, runs
from arch_jax.layers.sequence_position import at_start
from arch_jax.ops.convolution.long import long_convolution
from arch_jax.ops.recurrence import state_space as ops
from arch_jax.ops.recurrence.linear import check_chunk, resets
from arch_jax.ops.segments import read_where_real

FORMS = ("auto", "convolution", "recurrent")
INITIAL = {"lin": ops.s4d_lin, "inv": ops.s4d_inv}


@flax.struct.dataclass
class S4State:
    """Recurrent state; its size does not depend on the sequence length.

    Attributes:
      x: the state space's states over the current run, complex, "batch width pairs".
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    x: Any
    at: Any


def uniform(limit: float, gain: float = 1.0) -> Callable:
    """Uniform initializer on [-gain limit, gain limit]."""
    limit = gain * limit
    return lambda key, shape, dtype: jax.random.uniform(key, shape, jnp.float32, -limit, limit).astype(dtype)


class GLU(nn.Module):
    """W_1 gelu(x) * sigmoid(W_2 gelu(x)), with biases: the gated linear unit that follows S4, and mixes its channels.

    Attributes:
      gain: factor on the initial W_1.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    gain: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        width, dtypes = x.shape[2], {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        layer = lambda name, gain: Dense(width, initial=uniform(width**-0.5, gain), **dtypes, parent=self, name=name)
        y, gate = joint(nn.gelu(x, approximate=False), [layer("output", self.gain), layer("gate", 1.0)])
        return y * nn.sigmoid(gate)


def check_fields(mixer: nn.Module, name: str, *sizes: str) -> None:
    """Refuses sizes below 1.

    Raises:
      UsageError: see above.
    """
    for field in sizes:
        value = getattr(mixer, field)
        if value is not None and value < 1:
            raise UsageError(f"{field} of {name} is {value}; expected an integer of at least 1")


def check_steps(mixer: nn.Module, name: str) -> None:
    """Refuses an empty range of initial step sizes.

    Raises:
      UsageError: see above.
    """
    if not 0 < mixer.step_min <= mixer.step_max < math.inf:
        raise UsageError(
            f"step_min and step_max of {name} are {mixer.step_min} and {mixer.step_max}; expected 0 < step_min <= "
            "step_max, such as 0.001 and 0.1"
        )


class _StateSpace(nn.Module):
    """Base of S4 and S4D: the step size, C, D, and the gated linear unit after the state space.

    A subclass gives `system`: its kernel and its recurrence.

    Attributes:
      state: N, numbers of the state of each channel, even.
      step_min: the smallest step size at the start.
      step_max: the largest.
      form: algorithm, all with the same result: "convolution", "recurrent", or "auto", which takes the
        convolution where there are neither segments nor a state.
      chunk: tokens between the states that the gradient of the recurrence keeps.
      glu: whether the gated linear unit follows; without it the output is y.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the output's projection; the state space is at least float32.
      parameter_dtype: of the parameters, complex ones being pairs of real ones.
    """

    name_of_mixer: ClassVar[str] = ""

    state: int = 64
    step_min: float = 0.001
    step_max: float = 0.1
    form: str = "auto"
    chunk: int = 64
    glu: bool = True
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_fields(self, self.name_of_mixer, "state")
        check_steps(self, self.name_of_mixer)
        check_chunk(self.chunk, self.name_of_mixer)
        ops.s4d_lin(self.state)  # refuses sizes that are no pairs
        if self.form not in FORMS:
            raise unknown(f"form of {self.name_of_mixer}", self.form, FORMS)
        super().__post_init__()

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> S4State:
        """The state before the first token; it has the same size for every `length`."""
        number = jnp.result_type(jnp.promote_types(dtype, jnp.float32), jnp.complex64)
        return S4State(jnp.zeros((batch, width, self.state // 2), number), at_start(batch))

    def complex_parameter(
        self, name: str, width: int, value: np.ndarray | None = None
    ) -> Complex[Array, "width pairs"]:
        """A complex parameter, kept in two parts; drawn from a normal of variance 1, or `value` for each channel."""

        def initial(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            if value is None:
                return (jax.random.normal(key, shape) * math.sqrt(0.5)).astype(dtype)
            return jnp.broadcast_to(jnp.asarray(np.stack([value.real, value.imag], axis=-1)), shape).astype(dtype)

        parts = self.param(name, initial, (width, self.state // 2, 2), self.parameter_dtype)
        parts = parts.astype(jnp.promote_types(self.dtype, jnp.float32))
        return lax.complex(parts[..., 0], parts[..., 1])

    def diagonal(self, width: int, value: np.ndarray) -> Complex[Array, "width pairs"]:
        """A parameter with a negative real part, kept as the logarithm of its size, and an imaginary part."""
        shape, precise = (width, self.state // 2), jnp.promote_types(self.dtype, jnp.float32)
        spread = lambda row: lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(row), shape).astype(dtype)
        log_real = self.param("log_A_real", spread(np.log(-value.real)), shape, self.parameter_dtype).astype(precise)
        imaginary = self.param("A_imag", spread(value.imag), shape, self.parameter_dtype).astype(precise)
        return lax.complex(-jnp.exp(log_real), imaginary)

    def system(
        self, width: int, C: Complex[Array, "width pairs"], delta: Float[Array, "width"]
    ) -> tuple[Callable, Callable]:
        """(length -> the kernel, (u, before, starts, real, chunk) -> y and the last states)."""
        raise TypeError(f"{type(self).__name__} must define its state space")

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
        check_state(state, S4State, batch, self.name_of_mixer)
        if state is not None and state.x.shape[1:] != (width, self.state // 2):
            raise UsageError(
                f"the state of {self.name_of_mixer} has the shape {state.x.shape}; expected "
                f"{(batch, width, self.state // 2)}: batch, width and pairs"
            )
        run, position, after = runs(x, segment_ids, state)
        if self.form == "convolution" and run is not None:
            raise UsageError(
                f"{self.name_of_mixer} was given segments or a state with form='convolution'; expected form='auto'"
            )

        precise = jnp.promote_types(self.dtype, jnp.float32)
        C = self.complex_parameter("C", width)
        D = self.param("D", nn.initializers.normal(1.0), (width,), self.parameter_dtype).astype(precise)
        span = (math.log(self.step_min), math.log(self.step_max))
        draw = lambda key, shape, dtype: jax.random.uniform(key, shape, jnp.float32, *span).astype(dtype)
        delta = jnp.exp(self.param("log_step", draw, (width,), self.parameter_dtype).astype(precise))
        kernel, scan = self.system(width, C, delta)
        u = x.astype(precise)
        if self.form == "recurrent" or run is not None:
            starts, real = (None, None) if run is None else resets(run, position)
            y, last = scan(u, None if state is None else state.x, starts=starts, real=real, chunk=self.chunk)
        else:
            y = long_convolution(u, kernel(time).T)
        y = (y + D * u).astype(self.dtype)
        if self.glu:
            y = GLU(self.residual_scale, self.dtype, self.parameter_dtype, parent=self, name="glu")(y)
        y = real_only(y, run)
        return y, None if state is None else S4State(last.astype(state.x.dtype), after)


@component("s4d", kind="mixer")
class S4D(_StateSpace):
    """A diagonal state space for each channel (Gu et al. 2022, 2206.11893), and a gated linear unit.

        x'(t) = A x(t) + u(t),   y(t) = 2 Re(C x(t)) + D u(t),   out = W_1 gelu(y) * sigmoid(W_2 gelu(y))

    with B = 1, since only its products with C matter (section 3.3). A's real part, -exp of a parameter, stays negative.

    Attributes:
      state: N, numbers of the state of each channel, even.
      step_min: the smallest step size at the start.
      step_max: the largest.
      form: algorithm, all with the same result: "convolution", "recurrent", or "auto", which takes the
        convolution where there are neither segments nor a state.
      chunk: tokens between the states that the gradient of the recurrence keeps.
      glu: whether the gated linear unit follows; without it the output is y.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the output's projection; the state space is at least float32.
      parameter_dtype: of the parameters, complex ones being pairs of real ones.
      initial: A at the start: "lin", -1/2 + i pi n, or "inv", -1/2 + i N/pi (N/(2n+1) - 1).
      discretization: "zoh" or "bilinear".
    """

    name_of_mixer: ClassVar[str] = "s4d"

    initial: str = "lin"
    discretization: str = "zoh"

    def __post_init__(self) -> None:
        if self.initial not in INITIAL:
            raise unknown("initial A of s4d", self.initial, INITIAL)
        if self.discretization not in ops.DISCRETIZATIONS:
            raise unknown("discretization", self.discretization, ops.DISCRETIZATIONS)
        super().__post_init__()

    def system(
        self, width: int, C: Complex[Array, "width pairs"], delta: Float[Array, "width"]
    ) -> tuple[Callable, Callable]:
        """The Vandermonde product, and the diagonal recurrence."""
        A = self.diagonal(width, INITIAL[self.initial](self.state))
        A_bar, B_bar = ops.discretize(A, jnp.ones_like(A), delta, self.discretization)
        return (
            lambda length: ops.diagonal_kernel(A_bar, B_bar, C, length),
            lambda u, before, **settings: ops.diagonal_scan(u, A_bar, B_bar, C, before, **settings),
        )


@component("s4", kind="mixer")
class S4(_StateSpace):
    """A state space of normal plus low rank for each channel (Gu et al. 2021, 2111.00396), and a gated linear unit.

        x'(t) = (Lambda - P P^*) x(t) + B u(t),   y(t) = C x(t) + D u(t),   out = W_1 gelu(y) * sigmoid(W_2 gelu(y))

    discretized by the bilinear method. Lambda, P and B start as HiPPO-LegS, diagonalised (theorem 1). The parameter is
    C itself; the paper's code learns C (1 - A_bar^L) for the one length L of its inputs, here one C serves all lengths
    (algorithm 1, step 1). P^* instead of a Q of its own keeps A's eigenvalues to the left (Goel et al., 2202.09729).

    Attributes:
      state: N, numbers of the state of each channel, even.
      step_min: the smallest step size at the start.
      step_max: the largest.
      form: algorithm, all with the same result: "convolution", "recurrent", or "auto", which takes the
        convolution where there are neither segments nor a state.
      chunk: tokens between the states that the gradient of the recurrence keeps.
      glu: whether the gated linear unit follows; without it the output is y.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the output's projection; the state space is at least float32.
      parameter_dtype: of the parameters, complex ones being pairs of real ones.
    """

    name_of_mixer: ClassVar[str] = "s4"

    def system(
        self, width: int, C: Complex[Array, "width pairs"], delta: Float[Array, "width"]
    ) -> tuple[Callable, Callable]:
        """The Cauchy kernel with the Woodbury correction, and the recurrence."""
        Lambda, P, B, _ = ops.legs_nplr(self.state)
        Lambda = self.diagonal(width, Lambda)
        P, B = self.complex_parameter("P", width, P), self.complex_parameter("B", width, B)
        return (
            lambda length: ops.dplr_kernel(Lambda, P, B, C, delta, length),
            lambda u, before, **settings: ops.dplr_scan(u, Lambda, P, B, C, delta, before, **settings),
        )
