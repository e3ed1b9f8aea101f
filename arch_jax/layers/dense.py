"""The linear layer, and the token embedding that can also serve as output layer."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from arch_jax.fields import DType
from arch_jax.ops.batch_sharding import by_rows
from arch_jax.ops.float16 import stream_dtype
from arch_jax.ops.precision import look_up

#: Initial weights of a part's linear layers: normal, or `xavier`.
Initial = Literal["normal", "xavier"]


def xavier(fan_in: int, fan_out: int) -> functools.partial:
    """Uniform on +-sqrt(6 / (fan_in + fan_out)), called with (key, shape, dtype) (Glorot & Bengio 2010, eq. 16)."""
    limit = (6 / (fan_in + fan_out)) ** 0.5
    return functools.partial(jax.random.uniform, minval=-limit, maxval=limit)


class Dense(nn.Module):
    """y = x W + b over the last axis.

    Attributes:
      features: width of the output.
      bias: whether b exists.
      initial_std: standard deviation of the normal initializer of W; None is width^-1/2, which preserves the variance
        (fan-in scaling). b starts at 0.
      initial: another initializer of W, called with (key, shape, dtype); None is the normal one.
      gain: factor on the standard deviation.
      initial_bias: initializer of b, called with (key, shape, dtype).
      to_stream: whether y is added to a residual stream: in float16 it is float32 then (`ops.float16`).
      dtype: of the computation.
      parameter_dtype: of W and b.
    """

    features: int
    bias: bool = True
    initial_std: float | None = 0.02
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32
    initial: Callable | None = None
    gain: float = 1.0
    initial_bias: Callable = nn.initializers.zeros
    to_stream: bool = False

    @nn.compact
    def weights(self, width: int) -> tuple[Float[Array, "width features"], Float[Array, "features"] | None]:
        """W and b for inputs of `width`, in the dtype of the computation; None for a b that does not exist."""
        std = width**-0.5 if self.initial_std is None else self.initial_std
        initial = self.initial or nn.initializers.normal(std * self.gain)
        kernel = self.param("kernel", initial, (width, self.features), self.parameter_dtype).astype(self.dtype)
        if not self.bias:
            return kernel, None
        bias = self.param("bias", self.initial_bias, (self.features,), self.parameter_dtype)
        return kernel, bias.astype(self.dtype)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch features"]:
        wide = self.to_stream and stream_dtype(self.dtype) != self.dtype
        dtype = stream_dtype(self.dtype) if wide else None
        return affine(x.astype(self.dtype), *self.weights(x.shape[-1]), dtype)


def affine(
    x: Float[Array, "*batch width"],
    kernel: Float[Array, "width features"],
    bias: Float[Array, "features"] | None = None,
    dtype: DType | None = None,
) -> Float[Array, "*batch features"]:
    """x W + b over the last axis, as one product of two matrices; in x's dtype, or in `dtype`.

    XLA's CPU compiler makes slower code of a product with several leading axes, and of the sums in its gradient: a
    GPT-2 training step takes 0.8 of the time this way (experiments/benchmarks/train_step.py). Same bits.
    """
    y = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, preferred_element_type=dtype)
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def joint(x: Float[Array, "*batch width"], layers: Sequence[Dense]) -> list[Float[Array, "*batch _"]]:
    """The outputs of several layers for the same x, in one product: a GPT-2 step on CPU takes 0.94 of the time."""
    kernels, biases = zip(*(layer.weights(x.shape[-1]) for layer in layers))
    bias = None if biases[0] is None else jnp.concatenate(biases)
    y = affine(x.astype(layers[0].dtype), jnp.concatenate(kernels, axis=1), bias)
    return jnp.split(y, np.cumsum([layer.features for layer in layers])[:-1], axis=-1)


class Embedding(nn.Module):
    """A table of vectors, looked up by index; an index outside the table gives NaN.

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
        found = look_up(self.embedding, index).astype(self.dtype)
        return by_rows(found) if index.ndim > 1 else found

    def attend(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch entries"]:
        """Scores of every entry: x E^T."""
        return affine(x.astype(self.dtype), self.embedding.astype(self.dtype).T)
