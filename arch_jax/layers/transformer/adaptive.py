"""Residual blocks whose norms are modulated by a condition: adaLN-Zero (Peebles & Xie 2022, 2212.09748, section 3.2).

With LN a layer norm without scale and bias, and six vectors that a linear layer makes of silu(c),

    x <- x + alpha_1 * mixer(LN(x) * (1 + gamma_1) + beta_1)
    x <- x + alpha_2 * feed_forward(LN(x) * (1 + gamma_2) + beta_2)

That layer starts at 0, so every block starts as the identity.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from arch_jax.fields import DType
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import FeedForward, Mixer, Place
from arch_jax.layers.transformer.block import Context
from arch_jax.ops.float16 import not_narrowed
from arch_jax.ops.norms import layer_norm

#: Added to the variances; the authors' number.
EPSILON = 1e-6


def modulated(
    x: Float[Array, "batch time width"],
    shift: Float[Array, "batch width"],
    scale: Float[Array, "batch width"],
    dtype: DType,
) -> Float[Array, "batch time width"]:
    """LN(x) * (1 + scale) + shift in `dtype`; the statistics are at least float32."""
    ones = jnp.ones(x.shape[-1:], dtype)
    y = layer_norm(not_narrowed(x, dtype), ones, None, EPSILON).astype(dtype)
    return y * (1 + scale[:, None]) + shift[:, None]


def modulation(owner: nn.Module, condition: Float[Array, "batch width"], count: int) -> list[Array]:
    """`count` vectors "batch width" made of silu(condition) by the owner's layer "modulation", which starts at 0."""
    dtypes = {"dtype": owner.dtype, "parameter_dtype": owner.parameter_dtype}
    layer = Dense(count * condition.shape[-1], initial=nn.initializers.zeros, **dtypes, parent=owner, name="modulation")
    return jnp.split(layer(nn.silu(condition.astype(owner.dtype))), count, axis=-1)


class AdaptiveBlock(nn.Module):
    """The two equations above; a block of a `Stack`, whose context has the `condition` c.

    Attributes:
      mixer: of each layer; it may not be causal where it stands for a set of patches.
      feed_forward: of each layer.
      dtype: of the computation.
      parameter_dtype: of the parameters.
    """

    mixer: Mixer
    feed_forward: FeedForward
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        segment_ids: Int[Array, "batch time"] | None = None,
        state: None = None,
        train: bool = False,
        context: Context | None = None,
        place: Place | None = None,
    ) -> tuple[Float[Array, "batch time width"], None]:
        vectors = modulation(self, context.condition, 6)
        stream = x.dtype
        shared = {"place": place} if getattr(self.mixer, "placed", False) else {}
        for part, (shift, scale, gate) in zip(("mixer", "feed_forward"), (vectors[:3], vectors[3:])):
            y = modulated(x, shift, scale, self.dtype)
            if part == "mixer":
                y, _ = self.mixer(y, segment_ids, None, train, **shared)
            else:
                y = self.feed_forward(y, segment_ids, train)
            x = (x + gate[:, None] * y).astype(stream)
        return x, None
