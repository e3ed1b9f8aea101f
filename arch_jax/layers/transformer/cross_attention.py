"""Cross-attention: queries from a decoder, keys and values from the encoder's output."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense
from arch_jax.ops.attention.dot_product import attention


@component("cross_attention", kind="cross")
class CrossAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V, Q from the target, K and V from the memory (Vaswani et al. 2017, section 3.2.3).

    Attributes:
      heads: number of heads.
      head_size: dimensions of a head; None is width / heads.
      bias: whether the projections have biases.
      scale: factor of the scores; None is head_size^-0.5.
      query_gain: factor on the initial weights of the queries.
      initial_std: standard deviation of the initial weights; None is that of fan-in scaling.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      implementation: of `ops.attention`.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    heads: int = 8
    head_size: int | None = None
    bias: bool = False
    scale: float | None = None
    query_gain: float = 1.0
    initial_std: float | None = 0.02
    residual_scale: float = 1.0
    implementation: str = "auto"
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def size(self, width: int) -> int:
        """Dimensions of a head for inputs of `width`.

        Raises:
          UsageError: `width` can't be divided among the heads.
        """
        if self.heads < 1:
            raise UsageError(f"heads is {self.heads}; expected at least 1")
        if self.head_size is None and width % self.heads:
            best = min((h for h in range(1, width + 1) if width % h == 0), key=lambda h: abs(h - self.heads))
            raise UsageError(
                f"width {width} is not divisible by heads {self.heads}; the nearest that divides it is heads={best}"
            )
        return width // self.heads if self.head_size is None else self.head_size

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        memory: Float[Array, "batch source width"] | None,
        memory_mask: Bool[Array, "batch source"] | None = None,
        remembered: tuple[Array, Array] | None = None,
    ) -> tuple[Float[Array, "batch time width"], tuple[Array, Array]]:
        """The attended values of each target token, and the memory's keys and values.

        Args:
          x: the target.
          memory: the encoder's output; None if `remembered` is given.
          memory_mask: True at real tokens of the source.
          remembered: keys and values that an earlier call returned: they are not recomputed.
        """
        batch, time, width = x.shape
        size = self.size(width)
        settings = (self.bias, self.initial_std, self.dtype, self.parameter_dtype)
        split = lambda y: y.reshape(*y.shape[:2], self.heads, size)
        if remembered is None:
            remembered = tuple(
                split(Dense(self.heads * size, *settings, parent=self, name=name)(memory)) for name in ("key", "value")
            )
        q = split(Dense(self.heads * size, *settings, gain=self.query_gain, parent=self, name="query")(x))
        mask = None if memory_mask is None else memory_mask[:, None, None, :]
        k, v = (entry.astype(q.dtype) for entry in remembered)
        y = attention(q, k, v, mask=mask, scale=self.scale, implementation=self.implementation)
        y = y.reshape(batch, time, self.heads * size)
        output = Dense(width, *settings, gain=self.residual_scale, to_stream=True, parent=self, name="output")
        return output(y), remembered
