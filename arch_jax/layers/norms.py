"""Normalisation layers: LayerNorm (Ba et al. 2016, 1607.06450) and RMSNorm (Zhang & Sennrich 2019, 1910.07467)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType, component
from arch_jax.ops.norms import layer_norm, rms_norm


@component("layer_norm", kind="norm")
class LayerNorm(nn.Module):
    """y = scale * (x - mean) / sqrt(variance + epsilon) + bias, over the last axis (1607.06450, equation 4).

    Attributes:
      epsilon: added to the variance.
      bias: whether there is an additive bias.
      dtype: of the computation; the statistics are at least float32.
      parameter_dtype: of scale and bias.
    """

    epsilon: float = 1e-5
    bias: bool = True
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.parameter_dtype)
        bias = None
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.parameter_dtype)
        return layer_norm(x.astype(self.dtype), scale, bias, self.epsilon)


@component("rms_norm", kind="norm")
class RMSNorm(nn.Module):
    """y = scale * x / sqrt(mean(x^2) + epsilon), over the last axis (1910.07467, equation 4).

    Attributes:
      epsilon: added to the mean square.
      dtype: of the computation; the statistics are at least float32.
      parameter_dtype: of the scale.
    """

    epsilon: float = 1e-6
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.parameter_dtype)
        return rms_norm(x.astype(self.dtype), scale, self.epsilon)
