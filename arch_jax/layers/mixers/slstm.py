"""The sLSTM layer of xLSTM: scalar cells with exponential gates that mix within each head."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.mixers.contract import check_state, runs
from arch_jax.layers.mixers.mlstm import BlockDiagonal, head_norm
from arch_jax.layers.mixers.short_convolution import ShortConvolution
from arch_jax.layers.sequence_position import at_start
from arch_jax.ops.recurrence import slstm as ops
from arch_jax.ops.recurrence.linear import resets
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import Count

GATES = ("input", "forget", "cell", "output")


@flax.struct.dataclass
class SLSTMMixerState:
    """Recurrent state; its size does not depend on the sequence length.

    Attributes:
      h: the output at the last token, "batch heads size".
      c: the cells, times exp(-m), "batch heads size".
      n: the normalisers, times exp(-m); 0 before the first token, "batch heads size".
      m: the stabilisers, "batch heads size".
      convolution: the latest tokens, as `ops.causal_convolution` keeps them; None without convolution.
      at: position of each row, a `SequencePosition`.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    h: Any
    c: Any
    n: Any
    m: Any
    convolution: Any
    at: Any


@component("slstm", kind="mixer")
class SLSTM(nn.Module):
    """The sLSTM with the preceding part of its block (Beck et al. 2024, 2405.04517, equations 8 to 18, figure 9).

        a = silu(convolution(x))
        i~, f~ = a W_i + h_{t-1} R_i + b_i, a W_f + h_{t-1} R_f + b_f
        z~, o~ = x W_z + h_{t-1} R_z + b_z, x W_o + h_{t-1} R_o + b_o
        y = norm(slstm(i~, f~, z~, o~))                                                            (`ops.slstm`)

    W and R are block-diagonal with a block for each head; the norm is a LayerNorm of each head. There is no product
    after it: the paper's block has a gated feed-forward part next. R starts at 0, and b_f falls from 5 to -7 over the
    cells of a head, as a power of their number that grows with the layer's depth: cells of long and short memory. b_i
    has no gradient: what makes every i_t larger by one factor scales c and n alike.

    Attributes:
      heads: heads, a divisor of the width.
      convolution: tokens that the short convolution of the input and forget gates sees; 0 for none.
      depth_share: relative depth of the layer, from 0, the first, to 1, the last; for b_f.
      norm_epsilon: added to the variance of a head's output.
      initial_std: standard deviation of the initial W; None is sqrt(2/5) of fan-in scaling of the width.
      dtype: of the computation; gates, cells and the norm's statistics are at least float32.
      parameter_dtype: of the parameters.
    """

    heads: int = 4
    convolution: Count = 4
    depth_share: float = 0.0
    norm_epsilon: float = 1e-5
    initial_std: float | None = None
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise UsageError(f"heads of slstm is {self.heads}; expected an integer of at least 1")
        if self.convolution < 0:
            raise UsageError(f"convolution of slstm is {self.convolution}; expected tokens it sees, or 0 for none")
        if not 0 <= self.depth_share <= 1:
            raise UsageError(f"depth_share of slstm is {self.depth_share}; expected from 0 (first layer) to 1 (last)")
        super().__post_init__()

    def size(self, width: int) -> int:
        """Cells of a head, for inputs of `width`.

        Raises:
          UsageError: `heads` does not divide the width.
        """
        if width % self.heads:
            near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - self.heads))
            raise UsageError(
                f"heads of slstm is {self.heads}, which does not divide the width {width}; expected a divisor of it "
                f"(the nearest is {near})"
            )
        return width // self.heads

    def initial_state(self, batch: int, length: int, width: int, dtype: DType = jnp.float32) -> SLSTMMixerState:
        """The state before the first token; it has the same size for every `length`."""
        begin = ops.initial_state(batch, self.heads, self.size(width), dtype)
        recent = None
        if self.convolution:
            recent = ShortConvolution(self.convolution, parent=None).initial_state(batch, width, dtype)
        return SLSTMMixerState(*begin, recent, at_start(batch))

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
        size = self.size(width)
        check_state(state, SLSTMMixerState, batch, "slstm")
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype, "parent": self}
        std = (2 / (5 * width)) ** 0.5 if self.initial_std is None else self.initial_std

        run, position, after = runs(x, segment_ids, state)
        starts, real = (None, None) if run is None else resets(run, position)
        recent = None
        a = x
        if self.convolution:
            mixed = ShortConvolution(self.convolution, **dtypes, name="short_convolution")
            a, recent = mixed(x, run, None if state is None else state.convolution)
            a = jax.nn.silu(a)

        precise = jnp.promote_types(self.dtype, jnp.float32)
        zeros = nn.initializers.zeros
        draws = (zeros, self._draw_forget_bias, zeros, zeros)
        heard, matrices = [], []
        for gate, source, draw in zip(GATES, (a, a, x, x), draws):
            said = BlockDiagonal(size, std, **dtypes, name=f"{gate}_gate")(source).astype(precise)
            bias = self.param(f"bias_{gate}", draw, (width,), self.parameter_dtype).astype(precise)
            heard.append((said + bias).reshape(batch, time, self.heads, size))
            matrices.append(self.param(f"{gate}_recurrent", zeros, (self.heads, size, size), self.parameter_dtype))
        r = jnp.stack(matrices, axis=2).astype(precise)
        before = None if state is None else ops.SLSTMState(state.h, state.c, state.n, state.m)
        h, end = ops.slstm(jnp.stack(heard, axis=3), r, starts=starts, real=real, state=before)
        y = head_norm(self, h.astype(self.dtype), self.norm_epsilon)
        return y, None if state is None else SLSTMMixerState(*end, recent, after)

    def _draw_forget_bias(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        """From 5 down to -7 over the cells of each head."""
        size = shape[0] // self.heads
        place = jnp.arange(size) / max(size - 1, 1)
        return jnp.tile(5 - 12 * place ** (0.3 + 1.3 * self.depth_share), self.heads).astype(dtype)
