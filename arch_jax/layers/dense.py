"""The linear layer, and the token embedding that can serve as output layer too."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.fields import DType


class Dense(nn.Module):
    """y = x W + b over the last axis.

    Attributes:
      features: width of the output.
      bias: whether b exists.
      initial_std: standard deviation of the normal draw for W; b starts at 0.
      dtype: of the computation.
      parameter_dtype: of W and b.
    """

    features: int
    bias: bool = True
    initial_std: float = 0.02
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch features"]:
        initial = nn.initializers.normal(self.initial_std)
        kernel = self.param("kernel", initial, (x.shape[-1], self.features), self.parameter_dtype)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.parameter_dtype)
            y = y + bias.astype(self.dtype)
        return y


class Embedding(nn.Module):
    """A table of vectors, looked up by index.

    `attend` uses the same table as output layer (Press & Wolf 2017, 1608.05859).

    Attributes:
      entries: rows of the table.
      features: width of a row.
      initial_std: standard deviation of the normal draw.
      dtype: of the computation.
      parameter_dtype: of the table.
    """

    entries: int
    features: int
    initial_std: float = 0.02
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def setup(self) -> None:
        initial = nn.initializers.normal(self.initial_std)
        self.embedding = self.param("embedding", initial, (self.entries, self.features), self.parameter_dtype)

    def __call__(self, index: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        # An index outside the table gives NaN: a wrong token shows at once, where clipping would hide it.
        return jnp.take(self.embedding, index, axis=0, mode="fill", fill_value=jnp.nan).astype(self.dtype)

    def attend(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch entries"]:
        """Scores of every entry: x E^T."""
        return x.astype(self.dtype) @ self.embedding.astype(self.dtype).T
