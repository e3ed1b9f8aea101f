"""The mLSTM layer of xLSTM: matrix memories with exponential gates, in the layouts of two papers."""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense, joint
from arch_jax.layers.mixers.contract import check_state, real_only, runs
from arch_jax.layers.mixers.short_convolution import ShortConvolution
from arch_jax.layers.sequence_position import at_start
from arch_jax.ops.norms import layer_norm
from arch_jax.ops.recurrence import mlstm as ops
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import Count, Positive, Signed


@flax.struct.dataclass
class MLSTMMixerState:
    """Recurrent state; its size does not depend on the sequence length.

    Attributes:
      s: the memories C with their normalisers n, times exp(-m), "batch heads key_size value_size+1".
      m: the stabilisers, "batch heads".
      convolution: the latest tokens, as `ops.causal_convolution` keeps them; None without convolution.
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    s: Any
    m: Any
    convolution: Any
    at: Any


@component("mlstm", kind="mixer")
class MLSTM(nn.Module):
    """The mLSTM with the rest of its block (Beck et al. 2024, 2405.04517, equations 19 to 27, figure 10).

        [u, z] = x W_up,   a = silu(convolution(u)),   q = a W_q,  k = a W_k / sqrt(key_size),  v = u W_v
        i~, f~ = [q, k, v] W_i + b_i, [q, k, v] W_f + b_f
        h = mlstm(q, k, v, i~, f~)                                                   (`ops.mlstm`, for each head)
        y = ((norm(h) + skip * a) * silu(z)) W_down

    With `expansion=None` it is the leaner layout of xLSTM 7B (Beck et al. 2025, 2503.13427, section 3), which reads
    everything from x and leaves the widening to a feed-forward part:

        y = (norm(h) * sigmoid(x W_o)) W_down,   i~, f~ = cap(x W_i + b_i), cap(x W_f + b_f)

    The norm is a LayerNorm of each head. k reaches the gates before its division.

    Attributes:
      heads: heads.
      expansion: width of u and z as a multiple of the input's; None for the layout without them.
      multiple: the width of u is rounded up to a multiple of this.
      convolution: tokens that the short convolution sees; 0 for none, and then there is no skip either.
      block_size: W_q, W_k and W_v are block-diagonal, with blocks of so many channels; None for full matrices.
      key_size: dimensions of a head's query and key; None is the width of u over heads.
      value_size: dimensions of a head's value; None is the width of u over heads.
      gate_softcap: i~ and f~ are squashed to (-c, c) by c * tanh(. / c); None disables it.
      input_bias: initial b_i; None draws it from N(0, 0.1). b_f starts from 3 to 6 over the heads.
      norm_epsilon: added to the variance of a head's output.
      epsilon: added to the denominator of the memory's answer.
      form: algorithm, all with the same result: "auto", "parallel", "chunked" or "recurrent".
      chunk: tokens in a chunk of the chunked form.
      initial_std: standard deviation of the initial weights; None is sqrt(2/5) of fan-in scaling of the input's width
        (Nguyen & Salazar 2019), and for W_down 2 / (depth sqrt(width)). Those of the gates start at 0.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth;
        where `initial_std` is None, the depth is inferred from it, as that of 1 / sqrt(depth), or 1 / sqrt(2 depth) in
        the layout with a feed-forward part.
      dtype: of the computation; gates, memories and the norm's statistics are at least float32.
      parameter_dtype: of the parameters.
    """

    heads: int = 4
    expansion: float | None = 2.0
    multiple: int = 64
    convolution: Count = 4
    block_size: int | None = 4
    key_size: int | None = None
    value_size: int | None = None
    gate_softcap: Positive | None = None
    input_bias: Signed | None = None
    norm_epsilon: float = 1e-5
    epsilon: float = 1e-6
    form: str = "auto"
    chunk: int = 64
    initial_std: float | None = None
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        for name in ("heads", "multiple", "block_size", "key_size", "value_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} of mlstm is {value}; expected an integer of at least 1")
        for name in ("expansion", "gate_softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} of mlstm is {value}; expected a number above 0, or none")
        if self.convolution < 0:
            raise UsageError(f"convolution of mlstm is {self.convolution}; expected tokens it sees, or 0 for none")
        if self.block_size is not None and (self.key_size, self.value_size) != (None, None):
            raise UsageError(
                f"block_size of mlstm is {self.block_size}, and blocks keep the width; expected none with key_size or "
                "value_size"
            )
        super().__post_init__()

    def sizes(self, width: int) -> tuple[int, int, int]:
        """(width of u, key_size, value_size) for inputs of `width`.

        Raises:
          UsageError: `heads` or `block_size` does not divide the width of u.
        """
        inner = width
        if self.expansion is not None:
            inner = math.ceil(width * self.expansion / self.multiple) * self.multiple
        if inner % self.heads and None in (self.key_size, self.value_size):
            raise UsageError(
                f"heads of mlstm is {self.heads}; expected a divisor of the {inner} channels it shares out"
            )
        if self.block_size is not None and inner % self.block_size:
            raise UsageError(f"block_size of mlstm is {self.block_size}; expected a divisor of its {inner} channels")
        return inner, self.key_size or inner // self.heads, self.value_size or inner // self.heads

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> MLSTMMixerState:
        """The state before the first token; it has the same size for every `length`."""
        inner, key_size, value_size = self.sizes(width)
        begin = ops.initial_state(batch, self.heads, key_size, value_size, dtype)
        recent = None
        if self.convolution:
            recent = ShortConvolution(self.convolution, parent=None).initial_state(batch, inner, dtype)
        return MLSTMMixerState(begin.s, begin.m, recent, at_start(batch))

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
        inner, key_size, value_size = self.sizes(width)
        check_state(state, MLSTMMixerState, batch, "mlstm")
        small = math.sqrt(2 / (5 * width)) if self.initial_std is None else self.initial_std
        keys, values = self.heads * key_size, self.heads * value_size
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype, "parent": self}

        run, _, after = runs(x, segment_ids, state)
        recent = z = None

        u = x
        if self.expansion is not None:
            u, z = jnp.split(Dense(2 * inner, False, small, **dtypes, name="up")(x), 2, axis=-1)
        a = u
        if self.convolution:
            mixed = ShortConvolution(self.convolution, **dtypes, name="short_convolution")
            a, recent = mixed(u, run, None if state is None else state.convolution)
            a = jax.nn.silu(a)
        layer = lambda n, name: Dense(n, False, small, **dtypes, name=name)
        if self.block_size is None:
            q, k = joint(a, [layer(keys, "query"), layer(keys, "key")])
            v = layer(values, "value")(u)
        else:
            blocks = lambda name: BlockDiagonal(self.block_size, small, **dtypes, name=name)
            q, k, v = blocks("query")(a), blocks("key")(a), blocks("value")(u)

        precise = jnp.promote_types(self.dtype, jnp.float32)
        seen = x if self.expansion is None else jnp.concatenate([q, k, v], axis=-1)
        starts = {"input": self._draw_input_bias, "forget": _spaced}
        gates = joint(seen, [Dense(self.heads, False, initial=_zeros, **dtypes, name=f"{n}_gate") for n in starts])
        biases = [self.param(f"{n}_bias", draw, (self.heads,), self.parameter_dtype) for n, draw in starts.items()]
        i, f = (gate.astype(precise) + bias.astype(precise) for gate, bias in zip(gates, biases))
        if self.gate_softcap is not None:
            i, f = (self.gate_softcap * jnp.tanh(gate / self.gate_softcap) for gate in (i, f))

        apart = lambda y, size: y.reshape(batch, time, self.heads, size)
        q, k, v = apart(q, key_size), apart(k * key_size**-0.5, key_size), apart(v, value_size)
        before = None if state is None else ops.MLSTMState(state.s, state.m, state.at.last_run)
        settings = {"form": self.form, "chunk": self.chunk, "epsilon": self.epsilon}
        h, end = ops.mlstm(q, k, v, i, f, run=run, state=before, **settings)

        y = head_norm(self, h, self.norm_epsilon)
        if self.convolution and self.expansion is not None:
            y = y + self.param("skip", nn.initializers.ones, (inner,), self.parameter_dtype).astype(self.dtype) * a
        if z is None:
            y = y * jax.nn.sigmoid(layer(values, "output_gate")(x))
        else:
            y = y * jax.nn.silu(z)
        std, gain = small, self.residual_scale
        if self.initial_std is None:
            parts = 1 if self.expansion is not None else 2  # that write to the residual stream, a layer
            std, gain = 2 / (max(1.0, 1 / (parts * self.residual_scale**2)) * math.sqrt(width)), 1.0
        y = Dense(width, False, std, gain=gain, **dtypes, name="output", to_stream=True)(y)
        y = real_only(y, run)  # the skip has passed the convolution's bias on
        return y, None if state is None else MLSTMMixerState(end.s, end.m, recent, after)

    def _draw_input_bias(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        if self.input_bias is not None:
            return jnp.full(shape, self.input_bias, dtype)
        return (0.1 * jax.random.normal(key, shape)).astype(dtype)


class BlockDiagonal(nn.Module):
    """y = x W with W of square blocks along its diagonal.

    Attributes:
      size: channels of a block, a divisor of the width.
      initial_std: standard deviation of the initial weights.
      dtype: of the computation.
      parameter_dtype: of W.
    """

    size: int
    initial_std: float
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        shape = (x.shape[-1] // self.size, self.size, self.size)
        kernel = self.param("kernel", nn.initializers.normal(self.initial_std), shape, self.parameter_dtype)
        blocks = x.astype(self.dtype).reshape(*x.shape[:-1], *shape[:2])
        return jnp.einsum("...ni,nio->...no", blocks, kernel.astype(self.dtype)).reshape(x.shape)


def head_norm(module: nn.Module, h: Float[Array, "batch time heads size"], epsilon: float) -> Array:
    """A LayerNorm of each head, with a factor for each channel, as "batch time channels" in the module's dtype."""
    batch, time, heads, size = h.shape
    scale = module.param("norm_scale", nn.initializers.ones, (heads * size,), module.parameter_dtype)
    one = jnp.ones((size,), scale.dtype)
    normed = layer_norm(h, one, None, epsilon).reshape(batch, time, heads * size)
    return normed.astype(module.dtype) * scale.astype(module.dtype)


def _zeros(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    return jnp.zeros(shape, dtype)


def _spaced(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """From 3 to 6: the heads start with memories of 20 to 400 tokens."""
    return jnp.linspace(3, 6, *shape).astype(dtype)
