"""Graph convolution: padding sends nothing, receives nothing and has no gradient, whatever stands there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.graph import Graph
from arch_jax.layers.graph.convolution import GraphConvolution


@pytest.mark.parametrize("rubbish", [np.nan, np.inf])
@pytest.mark.parametrize("bias", [False, True])
def test_what_stands_at_padding_enters_nothing(rubbish, bias):
    """Three nodes and two edges, and a node and an edge of padding: outputs and gradients, bit for bit."""
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    senders, receivers = jnp.array([0, 1, 3]), jnp.array([1, 2, 3])
    layer = GraphConvolution(2, bias=bias)
    variables = layer.init(jax.random.key(0), jnp.asarray(x), Graph(x, senders, receivers, None, jnp.array([[3, 2]])))

    def loss(variables, x, edges):
        y = layer.apply(variables, x, Graph(x, senders, receivers, edges, jnp.array([[3, 2]])))
        return jnp.sum(jnp.square(y)), y

    found = []
    for other in (0.0, rubbish):
        given, edges = jnp.asarray(x).at[3].set(other), jnp.array([0.5, 2.0, other])
        found.append(jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(variables, given, edges))
    jax.tree.map(np.testing.assert_array_equal, *found)
    np.testing.assert_array_equal(found[1][0][1][3], 0)
