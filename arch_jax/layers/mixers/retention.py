"""Retention: linear attention whose memory decays at a rate of its own in each head (RetNet)."""

import math
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense, joint
from arch_jax.layers.mixers.contract import check_state, runs
from arch_jax.layers.sequence_position import at_start
from arch_jax.ops.attention.positions import apply_rope
from arch_jax.ops.recurrence import matrix as ops
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import Positive


@flax.struct.dataclass
class RetentionState:
    """Recurrent state; its size does not depend on the sequence length.

    Attributes:
      s: the faded sum of k^T v over the current run, "batch heads head_size value_size".
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    s: Any
    at: Any


@component("retention", kind="mixer")
class Retention(nn.Module):
    """Gated multi-scale retention (Sun et al. 2023, 2307.08621, equations 5 to 8).

        q_n = (x_n W_Q) e^(i n theta),   k_n = (x_n W_K) e^(i n theta) / sqrt(head_size),   v_n = x_n W_V
        S_n = gamma S_{n-1} + k_n^T v_n,   r_n = q_n S_n                                    (for each head)
        y_n = (swish(x_n W_G) * norm(r_n)) W_O

    gamma = 1 - 2^(-5-h) for head h, counted from 0. The norm, a GroupNorm with a group for each head, has no
    parameters; as it does not see the size of r_n, the divisions of section 2.1 ("retention score normalization")
    change nothing and are left out: sums are kept in at least float32 instead.

    Attributes:
      heads: heads, each with its own gamma.
      head_size: dimensions of a head's query and key, even; None is width / heads.
      value_size: dimensions of a head's value; None is twice head_size, as in the paper's models.
      longest: 1 / (1 - gamma) of the last head, in tokens. The first has 32 and those in between are spaced evenly
        by ratio; None doubles it from head to head (equation 8). The paper's models have 512.
      theta: the base of the rotation's frequencies, which go from 1 down to 1/theta.
      norm: of each head's output: "group" takes mean and variance out (the paper), "rms" the mean square only (the
        authors' later code).
      norm_epsilon: added to the variance or the mean square.
      form: algorithm, all with the same result: "auto", "parallel", "chunked" or "recurrent".
      chunk: tokens in a chunk of the chunked form.
      initial_std: standard deviation of the initial weights; None is the authors' initializer: Xavier's, times
        2^-2.5, and times 2^-1 for the output.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; sums and the norm's statistics are at least float32.
      parameter_dtype: of the parameters.
    """

    heads: int = 8
    head_size: int | None = None
    value_size: int | None = None
    longest: float | None = None
    theta: Positive = 10_000.0
    norm: Literal["group", "rms"] = "group"
    norm_epsilon: float = 1e-6
    form: str = "auto"
    chunk: int = 64
    initial_std: float | None = None
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        for name in ("heads", "head_size", "value_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} of retention is {value}; expected an integer of at least 1")
        if self.longest is not None and not 1 < self.longest < math.inf:
            raise UsageError(f"longest of retention is {self.longest}; expected more than 1 token, such as 512")
        super().__post_init__()

    def sizes(self, width: int) -> tuple[int, int]:
        """(head_size, value_size) for inputs of `width`.

        Raises:
          UsageError: `heads` does not divide the width, or queries can't be rotated in pairs.
        """
        if self.head_size is None and width % self.heads:
            near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - self.heads))
            raise UsageError(
                f"heads of retention is {self.heads}, which does not divide the width {width}; expected a divisor of "
                f"it (the nearest is {near}), or head_size"
            )
        size = self.head_size or width // self.heads
        if size % 2:
            raise UsageError(
                f"the heads of retention have {size} dimensions, which can't be rotated in pairs; expected an even "
                f"head_size (the nearest is {size + 1})"
            )
        return size, self.value_size or 2 * size

    def log_gamma(self) -> Float[Array, "heads"]:
        """The logarithm of each head's gamma."""
        fastest, doublings = 5.0, self.heads - 1.0
        if self.longest is not None:
            doublings = math.log2(self.longest) - fastest
        steps = jnp.arange(self.heads, dtype=float) / max(self.heads - 1, 1)
        return jnp.log1p(-jnp.exp2(-fastest - doublings * steps))

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> RetentionState:
        """The state before the first token; it has the same size for every `length`."""
        begin = ops.initial_state(batch, self.heads, *self.sizes(width), dtype)
        return RetentionState(begin.s, at_start(batch))

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
        head_size, value_size = self.sizes(width)
        check_state(state, RetentionState, batch, "retention")
        counts = {"query": head_size, "key": head_size, "value": value_size, "gate": value_size}
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        layers = [
            Dense(
                self.heads * size, False, self.initial_std, initial=self._draw(2**-2.5), **dtypes, parent=self, name=n
            )
            for n, size in counts.items()
        ]
        projected = joint(x, layers) if state is None else [layer(x) for layer in layers]
        q, k, v, gate = (y.reshape(batch, time, self.heads, size) for y, size in zip(projected, counts.values()))

        run, position, after = runs(x, segment_ids, state)
        position = jnp.arange(time) if position is None else position
        # The code's frequencies: both 1 and 1/theta are among them, where RoPE's stop short of the second.
        frequencies = self.theta ** -jnp.linspace(0, 1, head_size // 2, dtype=float)
        q, k = (apply_rope(y, position, frequencies) for y in (q, k * head_size**-0.5))
        decay = jnp.broadcast_to(self.log_gamma(), (batch, time, self.heads))
        before = None if state is None else ops.MatrixState(state.s, state.at.last_run)
        r, end = ops.matrix_recurrence(q, k, v, decay, run=run, state=before, form=self.form, chunk=self.chunk)

        y = (jax.nn.silu(gate) * _head_norm(r, self.norm == "group", self.norm_epsilon)).reshape(
            batch, time, self.heads * value_size
        )
        scaled = self._draw(2**-1 * self.residual_scale)
        y = Dense(
            width,
            False,
            self.initial_std,
            initial=scaled,
            gain=self.residual_scale,
            **dtypes,
            parent=self,
            name="output",
            to_stream=True,
        )(y)
        return y, None if state is None else RetentionState(end.s, after)

    def _draw(self, gain: float):
        """Xavier's uniform initializer times `gain`, or None if a standard deviation is given instead."""
        if self.initial_std is not None:
            return None
        return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def _head_norm(x: Float[Array, "batch time heads size"], centred: bool, epsilon: float) -> Array:
    """x with mean 0 (if `centred`) and mean square 1 over the last axis; in x's dtype."""
    precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if centred:
        precise = precise - jnp.mean(precise, axis=-1, keepdims=True)
    square = jnp.mean(precise * precise, axis=-1, keepdims=True)
    return (precise * lax.rsqrt(square + epsilon)).astype(x.dtype)
