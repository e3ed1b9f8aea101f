"""Squeeze and excitation (Hu et al. 2018, 1709.01507): channels weighted by a summary of the whole image."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType
from arch_jax.layers.dense import Dense
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.ops.convolution.pooling import global_average


class SqueezeExcitation(nn.Module):
    """x times sigmoid(W_2 f(W_1 mean(x) + b_1) + b_2), a number for each channel (1709.01507, equations 2 to 4).

    Attributes:
      hidden: width of the bottleneck.
      activation: f.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    hidden: int
    activation: str = "relu"
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype, "initial": nn.initializers.he_normal()}
        y = activation(self.activation)(Dense(self.hidden, **dtypes, name="reduce")(global_average(x)))
        y = nn.sigmoid(Dense(x.shape[-1], **dtypes, name="expand")(y))
        return x * y[:, None, None, :]
