"""Mamba-2's block as a sequence mixer: state space duality, with one decay for each head."""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError, unknown
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense, joint
from arch_jax.layers.mixers.contract import check_state, real_only, runs
from arch_jax.layers.mixers.short_convolution import ShortConvolution
from arch_jax.layers.mixers.ssm.mamba import step_bias
from arch_jax.layers.mixers.ssm.s4 import check_fields, check_steps, uniform
from arch_jax.layers.sequence_position import at_start
from arch_jax.ops.recurrence import matrix as ops
from arch_jax.ops.recurrence.linear import check_chunk
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import Count, Unlimited


@flax.struct.dataclass
class Mamba2State:
    """Recurrent state; its size does not depend on the sequence length.

    Attributes:
      s: the heads' states over the current run, "batch heads state head_size".
      convolution: the latest tokens, `ops.causal_convolution.ConvolutionState`.
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    s: Any
    convolution: Any
    at: Any


class GatedNorm(nn.Module):
    """y = scale * u / sqrt(mean(u^2) + epsilon) with u = x silu(z), the mean taken over each group of channels.

    Attributes:
      groups: equal parts of the last axis that are normalised apart.
      epsilon: added to the mean square.
      dtype: of the output; the statistics are at least float32.
      parameter_dtype: of the scale.
    """

    groups: int = 1
    epsilon: float = 1e-5
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], z: Float[Array, "*batch channels"]
    ) -> Float[Array, "*batch channels"]:
        precise = jnp.promote_types(x.dtype, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.parameter_dtype).astype(precise)
        u = x.astype(precise) * nn.silu(z.astype(precise))
        parts = u.reshape(*u.shape[:-1], self.groups, u.shape[-1] // self.groups)
        parts = parts * jax.lax.rsqrt(jnp.mean(parts * parts, axis=-1, keepdims=True) + self.epsilon)
        return (parts.reshape(u.shape) * scale).astype(self.dtype)


@component("mamba2", kind="mixer")
class Mamba2(nn.Module):
    """Mamba-2's block (Dao and Gu 2024, 2405.21060, figure 6, right, and section 7.1).

        x', B, C = silu(conv(x W_x | x W_B | x W_C)),   z = x W_z,   Delta = softplus(x W_Delta + b_Delta)
        S_t = exp(Delta_t A) S_{t-1} + B_t (Delta_t x'_t)^T                 (for each head; A < 0 is a number)
        y = norm((S_t^T C_t + D x'_t) * silu(z)) W_out

    which is linear attention with queries C, keys B and values Delta x', and a decay for each head and token (section
    4). B and C are shared by the heads of a group ("grouped-value attention", section 7.2).

    Attributes:
      expand: channels of the inner sequence, as a multiple of the width.
      head_size: the paper's P, channels of a head.
      state: N, numbers of the state of each channel.
      groups: the number of B and C, a divisor of the number of heads; the norm has as many groups.
      convolution: tokens that the short convolution looks at.
      bias: whether the projections in and out have biases.
      convolution_bias: whether the convolution has one.
      epsilon: of the norm.
      step_min: the smallest step size at the start.
      step_max: the largest.
      step_floor: lower bound of the step sizes.
      step_limit: step sizes are clipped to this range, also in training; None disables it.
      A_min: the smallest -A at the start.
      A_max: the largest.
      form: algorithm, all with the same result: "auto", "parallel", "chunked" or "recurrent".
      chunk: tokens in a chunk of the chunked form.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; step sizes, states and the norm's statistics are at least float32.
      parameter_dtype: of the parameters.
    """

    expand: int = 2
    head_size: int = 64
    state: int = 128
    groups: int = 1
    convolution: Count = 4
    bias: bool = False
    convolution_bias: bool = True
    epsilon: float = 1e-5
    step_min: float = 0.001
    step_max: float = 0.1
    step_floor: float = 1e-4
    step_limit: tuple[Unlimited, Unlimited] | None = None
    A_min: float = 1.0
    A_max: float = 16.0
    form: str = "auto"
    chunk: int = 64
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_fields(self, "mamba2", "expand", "head_size", "state", "groups", "convolution")
        check_steps(self, "mamba2")
        check_chunk(self.chunk, "mamba2")
        if self.form not in ops.FORMS:
            raise unknown("form of mamba2", self.form, ops.FORMS)
        if not 0 < self.A_min <= self.A_max < math.inf:
            raise UsageError(
                f"A_min and A_max of mamba2 are {self.A_min} and {self.A_max}; expected 0 < A_min <= A_max, such as "
                "1 and 16"
            )
        if self.step_limit is not None and not 0 <= self.step_limit[0] < self.step_limit[1]:
            raise UsageError(f"step_limit of mamba2 is {self.step_limit}; expected 0 <= least < most, or none")
        super().__post_init__()

    def heads(self, width: int) -> int:
        """The number of heads for inputs of `width`.

        Raises:
          UsageError: `head_size` does not divide the inner channels, or `groups` the heads.
        """
        inner = self.expand * width
        for name, part, whole, what in (
            ("head_size", self.head_size, inner, "inner channels"),
            ("groups", self.groups, inner // self.head_size, "heads"),
        ):
            if whole % part or whole < 1:
                near = min((n for n in range(1, max(whole, 1) + 1) if whole % n == 0), key=lambda n: abs(n - part))
                raise UsageError(
                    f"{name} of mamba2 is {part}, which does not divide the {whole} {what}; expected a divisor of "
                    f"{whole} (the nearest is {near})"
                )
        return inner // self.head_size

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> Mamba2State:
        """The state before the first token; it has the same size for every `length`."""
        begin = ops.initial_state(batch, self.heads(width), self.state, self.head_size, dtype)
        channels = self.expand * width + 2 * self.groups * self.state
        convolution = ShortConvolution(self.convolution, parent=None).initial_state(batch, channels, dtype)
        return Mamba2State(begin.s, convolution, at_start(batch))

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
        check_state(state, Mamba2State, batch, "mamba2")
        inner, heads, shared = self.expand * width, self.heads(width), self.groups * self.state
        run, _, after = runs(x, segment_ids, state)
        carried = before = None
        if state is not None:
            carried, before = ops.MatrixState(state.s, state.at.last_run), state.convolution

        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        dense = lambda name, features, fan_in, gain=1.0, last=False: Dense(
            features, self.bias, initial=uniform(fan_in**-0.5, gain), to_stream=last, **dtypes, parent=self, name=name
        )
        together = joint if state is None else lambda x, layers: [layer(x) for layer in layers]
        sizes = {"gate": inner, "input": inner, "B": shared, "C": shared, "delta": heads}
        z, *xBC, delta = together(x, [dense(name, features, width) for name, features in sizes.items()])
        convolution = ShortConvolution(
            self.convolution, self.convolution_bias, **dtypes, parent=self, name="convolution"
        )
        xBC, before = convolution(jnp.concatenate(xBC, axis=-1), run, before)
        u, B, C = jnp.split(nn.silu(xBC), (inner, inner + shared), axis=-1)
        u = u.reshape(batch, time, heads, self.head_size)
        B, C = (array.reshape(batch, time, self.groups, self.state) for array in (B, C))

        precise = jnp.promote_types(self.dtype, jnp.float32)
        bias = step_bias(self.step_min, self.step_max, self.step_floor)
        b = self.param("delta_bias", bias, (heads,), self.parameter_dtype).astype(precise)
        delta = nn.softplus(delta.astype(precise) + b)
        delta = delta if self.step_limit is None else jnp.clip(delta, *self.step_limit)
        log_of_range = lambda key, shape, dtype: jnp.log(
            jax.random.uniform(key, shape, jnp.float32, self.A_min, self.A_max)
        ).astype(dtype)
        A = -jnp.exp(self.param("A_log", log_of_range, (heads,), self.parameter_dtype).astype(precise))
        D = self.param("D", nn.initializers.ones, (heads,), self.parameter_dtype).astype(precise)
        settings = {"run": run, "state": carried, "form": self.form, "chunk": self.chunk}
        values = u.astype(precise) * delta[..., None]
        y, carried = ops.matrix_recurrence(C, B, values, delta * A, **settings)
        y = (y + u * D[:, None]).reshape(batch, time, inner)

        norm = GatedNorm(self.groups, self.epsilon, **dtypes, parent=self, name="norm")
        y = dense("output", width, inner, self.residual_scale, last=True)(norm(y, z))
        y = real_only(y, run) if self.bias else y  # else the output at padding is 0 as it is
        return y, None if state is None else Mamba2State(carried.s, before, after)
