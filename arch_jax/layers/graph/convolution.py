"""Graph convolution layers."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.fields import DType
from arch_jax.graph import Graph
from arch_jax.layers.dense import Dense
from arch_jax.ops.graph.message_passing import is_real, propagate, symmetric_weights


class GraphConvolution(nn.Module):
    """y = A^ X W + b with A^ = D^(-1/2) (A + I) D^(-1/2) (Kipf & Welling 2017, 1609.02907, equations 2 and 8).

    Edges may have a weight each (`graph.edges`, "edges"); without, they weigh 1. Padding neither sends nor receives,
    and its rows are 0.

    Attributes:
      features: width of the output.
      bias: whether b exists; the paper has none.
      dtype: of the computation; the sums over edges are at least float32.
      parameter_dtype: of W and b.
    """

    features: int
    bias: bool = False
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "nodes width"], graph: Graph) -> Float[Array, "nodes features"]:
        precise = jnp.promote_types(self.dtype, jnp.float32)
        nodes, edges = graph.sizes.sum(0)
        real = is_real(nodes, len(x))
        given = jnp.ones(len(graph.senders), precise) if graph.edges is None else graph.edges.astype(precise)
        weights = jnp.where(is_real(edges, len(graph.senders)), given, 0)
        between, loops = symmetric_weights(graph.senders, graph.receivers, weights, real.astype(precise))
        x = jnp.where(real[:, None], x, 0)
        dense = Dense(
            self.features, False, dtype=self.dtype, parameter_dtype=self.parameter_dtype,
            initial=nn.initializers.glorot_uniform(), name="dense",
        )  # fmt: skip
        x = dense(x)  # before the sums: W makes rows narrower
        y = propagate(x, graph.senders, graph.receivers, between) + (x * loops[:, None]).astype(x.dtype)
        if self.bias:
            b = self.param("bias", nn.initializers.zeros, (self.features,), self.parameter_dtype)
            y = jnp.where(real[:, None], y + b.astype(self.dtype), 0)
        return y
