"""Delta networks: a matrix memory that corrects what a key recalls instead of adding to it, with and without decay."""

import math
from typing import Any, ClassVar

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
from arch_jax.layers.mixers.short_convolution import ShortConvolution
from arch_jax.layers.sequence_position import at_start
from arch_jax.ops.norms import rms_norm
from arch_jax.ops.recurrence import matrix as ops
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import Count


@flax.struct.dataclass
class DeltaState:
    """Recurrent state; its size does not depend on the sequence length.

    Attributes:
      s: the memory of the current run, "batch value_heads head_size value_size".
      convolution: the latest tokens, as `ops.causal_convolution` keeps them; None without convolution.
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    s: Any
    convolution: Any
    at: Any


@component("delta_net", kind="mixer")
class DeltaNet(nn.Module):
    """DeltaNet (Schlag et al. 2021, 2102.11174; in this form Yang et al. 2024, 2406.06484, sections 2.2 and 3.3).

        q, k, v = silu(convolution(x [W_Q, W_K, W_V])),   q and k of length 1 in each head,   beta = sigmoid(x W_beta)
        S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,   o_t = S_t^T q_t / sqrt(head_size)
        y_t = rms_norm(o_t) W_O

    The memory answers k_t with v_t where beta_t is 1, and forgets nothing else that it holds under orthogonal keys.

    Attributes:
      heads: heads.
      head_size: dimensions of a head's query and key; None is width / heads.
      value_size: dimensions of a head's value; None is head_size.
      convolution: tokens that the short convolution of queries, keys and values sees; 0 for none.
      negative_eigenvalues: whether beta is twice the sigmoid, so that the eigenvalues of I - beta k k^T reach from -1
        to 1, which tracking a state such as parity needs (Grazzi et al. 2024, 2411.12537).
      gate: whether the normed output is multiplied by silu(x W_G).
      norm_epsilon: added to the mean square of the output.
      form: algorithm, all with the same result: "auto", "parallel", "chunked" or "recurrent".
      chunk: tokens in a chunk of the chunked form.
      initial_std: standard deviation of the initial weights; None is that of fan-in scaling.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; lengths, decays and the memory are at least float32.
      parameter_dtype: of the parameters.
    """

    #: Whether the memory decays.
    decays: ClassVar[bool] = False
    #: Heads of the values, where there may be more than of queries and keys.
    value_heads: ClassVar[int | None] = None

    heads: int = 4
    head_size: int | None = None
    value_size: int | None = None
    convolution: Count = 4
    negative_eigenvalues: bool = False
    gate: bool = False
    norm_epsilon: float = 1e-5
    form: str = "auto"
    chunk: int = 64
    initial_std: float | None = 0.02
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        for name in ("heads", "head_size", "value_size", "value_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} of {self._name()} is {value}; expected an integer of at least 1")
        if self.convolution < 0:
            raise UsageError(
                f"convolution of {self._name()} is {self.convolution}; expected tokens it sees, or 0 for none"
            )
        if self.value_heads is not None and self.value_heads % self.heads:
            raise UsageError(
                f"value_heads of {self._name()} is {self.value_heads}; expected a multiple of its {self.heads} heads"
            )
        super().__post_init__()

    def _name(self) -> str:
        return "gated_delta_net" if self.decays else "delta_net"

    def sizes(self, width: int) -> tuple[int, int, int]:
        """(value_heads, head_size, value_size) for inputs of `width`.

        Raises:
          UsageError: `heads` does not divide the width and no `head_size` is given.
        """
        if self.head_size is None and width % self.heads:
            near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - self.heads))
            raise UsageError(
                f"heads of {self._name()} is {self.heads}, which does not divide the width {width}; expected a divisor "
                f"of it (the nearest is {near}), or head_size"
            )
        size = self.head_size or width // self.heads
        return self.value_heads or self.heads, size, self.value_size or size

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> DeltaState:
        """The state before the first token; it has the same size for every `length`."""
        value_heads, head_size, value_size = self.sizes(width)
        begin = ops.initial_state(batch, value_heads, head_size, value_size, dtype)
        recent = None
        if self.convolution:
            channels = 2 * self.heads * head_size + value_heads * value_size
            recent = ShortConvolution(self.convolution, parent=None).initial_state(batch, channels, dtype)
        return DeltaState(begin.s, recent, at_start(batch))

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
        value_heads, head_size, value_size = self.sizes(width)
        check_state(state, DeltaState, batch, self._name())
        keys, values = self.heads * head_size, value_heads * value_size
        counts = {"query": keys, "key": keys, "value": values, "beta": value_heads}
        counts |= {"gate": values} if self.gate else {}
        counts |= {"decay": value_heads} if self.decays else {}
        settings = (False, self.initial_std, self.dtype, self.parameter_dtype)
        layers = [Dense(n, *settings, parent=self, name=name) for name, n in counts.items()]
        projected = joint(x, layers) if state is None else [layer(x) for layer in layers]
        read = dict(zip(counts, projected))

        run, _, after = runs(x, segment_ids, state)
        recent = None
        qkv = jnp.concatenate([read["query"], read["key"], read["value"]], axis=-1)
        if self.convolution:
            mixed = ShortConvolution(
                self.convolution, False, self.dtype, self.parameter_dtype, parent=self, name="short_convolution"
            )
            qkv, recent = mixed(qkv, run, None if state is None else state.convolution)
        q, k, v = jnp.split(jax.nn.silu(qkv), (keys, 2 * keys), axis=-1)
        v = v.reshape(batch, time, value_heads, value_size)
        # Consecutive heads of the values share a query and a key.
        spread = lambda y: jnp.repeat(y, value_heads // self.heads, axis=2) if value_heads > self.heads else y
        q, k = (spread(_unit_length(y.reshape(batch, time, self.heads, head_size))) for y in (q, k))
        precise = jnp.promote_types(self.dtype, jnp.float32)
        beta = jax.nn.sigmoid(read["beta"].astype(precise)) * (2 if self.negative_eigenvalues else 1)
        decay = self._log_decay(read["decay"].astype(precise)) if self.decays else None
        before = None if state is None else ops.MatrixState(state.s, state.at.last_run)
        o, end = ops.delta_rule(
            q * head_size**-0.5, k, v, beta, decay, run=run, state=before, form=self.form, chunk=self.chunk
        )

        scale = self.param("norm_scale", nn.initializers.ones, (value_size,), self.parameter_dtype)
        y = rms_norm(o, scale, self.norm_epsilon).reshape(batch, time, values).astype(self.dtype)
        if self.gate:
            y = y * jax.nn.silu(read["gate"])
        y = Dense(width, *settings, gain=self.residual_scale, parent=self, name="output", to_stream=True)(y)
        return y, None if state is None else DeltaState(end.s, recent, after)

    def _log_decay(self, rate: Float[Array, "batch time heads"]) -> Float[Array, "batch time heads"]:
        """The logarithm of each token's decay."""
        raise TypeError(f"{type(self).__name__} must define the decay of its memory")


@component("gated_delta_net", kind="mixer")
class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet (Yang et al. 2024, 2412.06464, equation 10 and section 3.4): DeltaNet whose memory also decays.

        S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,   alpha_t = exp(-A softplus(x_t W_alpha + b))
        y_t = (rms_norm(o_t) * silu(x_t W_G)) W_O

    and the rest as in `DeltaNet`; alpha = 1 gives it back. A starts uniform in (0, 16) and softplus(b) log-uniform in
    (0.001, 0.1), as Mamba-2's do.

    Attributes:
      heads: heads of the queries and keys.
      head_size: dimensions of a head's query and key; None is width / heads.
      value_size: dimensions of a head's value; None is head_size.
      convolution: tokens that the short convolution of queries, keys and values sees; 0 for none.
      negative_eigenvalues: whether beta is twice the sigmoid, so that the eigenvalues of I - beta k k^T reach from -1
        to 1, which tracking a state such as parity needs (Grazzi et al. 2024, 2411.12537).
      gate: whether the normed output is multiplied by silu(x W_G).
      norm_epsilon: added to the mean square of the output.
      form: algorithm, all with the same result: "auto", "parallel", "chunked" or "recurrent".
      chunk: tokens in a chunk of the chunked form.
      initial_std: standard deviation of the initial weights; None is that of fan-in scaling.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation; lengths, decays and the memory are at least float32.
      parameter_dtype: of the parameters.
      value_heads: heads of the values, a multiple of `heads`, each with a beta and an alpha of its own; None is as
        many as `heads`.
    """

    decays: ClassVar[bool] = True

    gate: bool = True
    value_heads: int | None = None

    def _log_decay(self, rate: Float[Array, "batch time heads"]) -> Float[Array, "batch time heads"]:
        """log alpha."""
        shape = rate.shape[-1:]
        a_log = self.param("a_log", _log_uniform_draw, shape, self.parameter_dtype).astype(rate.dtype)
        bias = self.param("decay_bias", _step_draw, shape, self.parameter_dtype).astype(rate.dtype)
        return -jnp.exp(a_log) * jax.nn.softplus(rate + bias)


def _unit_length(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """x over its length, in at least float32; an x of nearly 0 stays small instead of becoming a direction."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def _log_uniform_draw(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """log A, of A uniform in (0, 16); bounded away from 0, whose logarithm is not finite."""
    return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1e-2, 16)).astype(dtype)


def _step_draw(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """b, of softplus(b) log-uniform in (0.001, 0.1)."""
    step = jnp.exp(jax.random.uniform(key, shape, jnp.float32, math.log(1e-3), math.log(1e-1)))
    return (step + jnp.log(-jnp.expm1(-step))).astype(dtype)
