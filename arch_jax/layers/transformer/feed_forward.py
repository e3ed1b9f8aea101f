"""Position-wise feed-forward layers: the two-matrix network and its gated form.

A feed-forward part is called like a mixer, but keeps no state:

    y = feed_forward(x, segment_ids=None, train=False)     # "batch time width"; id 0 is padding and counts nowhere

These two work on each position alone and need neither argument; a layer of experts needs both (`layers.sowing` is how
it reports its losses).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.errors import unknown
from arch_jax.fields import DType, component
from arch_jax.layers.dense import Dense, Initial, xavier
from arch_jax.ops.activations import gelu_tanh, scaled_tanh

#: Activation by name. GELU in both forms of Hendrycks & Gimpel (2016, arXiv 1606.08415): exact, and by tanh.
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": gelu_tanh,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "scaled_tanh": scaled_tanh,
    "sigmoid": jax.nn.sigmoid,
}


def activation(name: str):
    """The activation function of a name.

    Raises:
      UsageError: unknown activation, with the nearest names.
    """
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


@component("mlp", kind="feed_forward")
class MLP(nn.Module):
    """FFN(x) = f(x W1 + b1) W2 + b2 (Vaswani et al. 2017, 1706.03762, equation 2).

    Attributes:
      hidden: width of the hidden layer; None is four times the width of the input.
      activation: name of f.
      bias: whether the two matrices have biases.
      initial_std: standard deviation of the initial weights; None is that of fan-in scaling.
      initial: "normal" with that deviation, or "xavier": uniform with variance 2 / (fan-in + fan-out); then
        `residual_scale` has no effect.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    hidden: int | None = None
    activation: str = "gelu_tanh"
    bias: bool = True
    initial_std: float | None = 0.02
    initial: Initial = "normal"
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch width"], segment_ids: Int[Array, "*batch"] | None = None, train: bool = False
    ) -> Float[Array, "*batch width"]:
        width = x.shape[-1]
        hidden = self.hidden or 4 * width
        settings = {"bias": self.bias, "dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        settings |= {"initial": xavier(width, hidden) if self.initial == "xavier" else None}
        h = Dense(hidden, initial_std=self.initial_std, **settings, name="up")(x)
        h = activation(self.activation)(h)
        settings |= {"gain": self.residual_scale, "to_stream": True}
        return Dense(width, initial_std=self.initial_std, **settings, name="down")(h)


@component("swiglu", kind="feed_forward")
class SwiGLU(nn.Module):
    """FFN(x) = (silu(x W) * x V) W2 (Shazeer 2020, arXiv 2002.05202, equation 6).

    Attributes:
      hidden: width of the hidden layer; None is 8/3 of the width of the input, rounded up to a multiple.
      multiple: a computed hidden width is rounded up to a multiple of this.
      activation: of the gate: "silu" gives SwiGLU, "gelu_tanh" GeGLU, "sigmoid" the original GLU.
      bias: whether the three matrices have biases.
      initial_std: standard deviation of the initial weights; None is that of fan-in scaling.
      residual_scale: factor on the initial weights of the output, set by a decoder that scales them with its depth.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    hidden: int | None = None
    multiple: int = 32
    activation: str = "silu"
    bias: bool = False
    initial_std: float | None = 0.02
    residual_scale: float = 1.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch width"], segment_ids: Int[Array, "*batch"] | None = None, train: bool = False
    ) -> Float[Array, "*batch width"]:
        width = x.shape[-1]
        hidden = self.hidden or -(-(8 * width // 3) // self.multiple) * self.multiple
        settings = {"bias": self.bias, "dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        gate = Dense(hidden, initial_std=self.initial_std, **settings, name="gate")(x)
        up = Dense(hidden, initial_std=self.initial_std, **settings, name="up")(x)
        h = activation(self.activation)(gate) * up
        settings |= {"gain": self.residual_scale, "to_stream": True}
        return Dense(width, initial_std=self.initial_std, **settings, name="down")(h)
