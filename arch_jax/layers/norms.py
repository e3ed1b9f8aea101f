"""Normalisation layers with one call: `norm(x, train=False)`.

LayerNorm (Ba et al. 2016, 1607.06450), RMSNorm (Zhang & Sennrich 2019, 1910.07467), GroupNorm (Wu & He 2018,
1803.08494) and BatchNorm (Ioffe & Szegedy 2015, 1502.03167). Only the last differs in training.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType, component
from arch_jax.layers import collections
from arch_jax.ops.float16 import not_narrowed
from arch_jax.ops.norms import batch_norm, batch_statistics, group_norm, layer_norm, rms_norm
from arch_jax.ranges import Share

collections.declare("batch_stats", average="average", devices="mean")


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
    def __call__(self, x: Float[Array, "*batch width"], train: bool = False) -> Float[Array, "*batch width"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.parameter_dtype)
        bias = None
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.parameter_dtype)
        return layer_norm(not_narrowed(x, self.dtype), scale, bias, self.epsilon).astype(self.dtype)


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
    def __call__(self, x: Float[Array, "*batch width"], train: bool = False) -> Float[Array, "*batch width"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.parameter_dtype)
        return rms_norm(not_narrowed(x, self.dtype), scale, self.epsilon).astype(self.dtype)


@component("group_norm", kind="norm")
class GroupNorm(nn.Module):
    """y = scale * (x - mean) / sqrt(variance + epsilon) + bias, over places and a group of channels (1803.08494).

    Attributes:
      groups: equal groups of channels, each of which has a mean and a variance of its own in each example.
      epsilon: added to the variance.
      dtype: of the computation; the statistics are at least float32.
      parameter_dtype: of scale and bias.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space channels"], train: bool = False
    ) -> Float[Array, "batch *space channels"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.parameter_dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.parameter_dtype)
        x = not_narrowed(x, self.dtype)
        return group_norm(x, scale, bias, self.groups, self.epsilon).astype(self.dtype)


@component("batch_norm", kind="norm")
class BatchNorm(nn.Module):
    """y = scale * (x - mean) / sqrt(variance + epsilon) + bias for each channel (1502.03167, algorithms 1 and 2).

    In training mean and variance are those of the batch, over all axes but the last, and their moving averages are
    updated in the collection "batch_stats"; in evaluation they are the moving averages. The average of the variance is
    of the unbiased one (algorithm 2, step 10), as in PyTorch.

    Attributes:
      epsilon: added to the variance.
      momentum: fraction of the old moving average kept at each step.
      axis_name: of a mapped axis over devices, whose batches then count as one (`pmap` sets it); None otherwise.
      initial_scale: initial value of scale.
      dtype: of the computation; the statistics are at least float32.
      parameter_dtype: of scale and bias; the moving averages are at least float32.
    """

    epsilon: float = 1e-5
    momentum: Share = 0.9
    axis_name: str | None = None
    initial_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"], train: bool = False) -> Float[Array, "*batch width"]:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.constant(self.initial_scale), shape, self.parameter_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.parameter_dtype)
        precise = jnp.promote_types(self.parameter_dtype, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, precise)
        variance = self.variable("batch_stats", "variance", jnp.ones, shape, precise)
        if not train:
            x = not_narrowed(x, self.dtype)
            return batch_norm(x, mean.value, variance.value, scale, bias, self.epsilon).astype(self.dtype)
        now, spread, count = batch_statistics(x, self.axis_name)
        if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            blend = lambda old, new: (self.momentum * old + (1 - self.momentum) * new).astype(old.dtype)
            mean.value = blend(mean.value, now)
            variance.value = blend(variance.value, spread * count / jnp.maximum(count - 1, 1))
        return batch_norm(not_narrowed(x, self.dtype), now, spread, scale, bias, self.epsilon).astype(self.dtype)
