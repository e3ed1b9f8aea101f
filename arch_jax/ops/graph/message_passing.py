"""Sums over the edges of a graph: the message passing of graph networks.

Edges are two arrays of node numbers, `senders` and `receivers`; padding edges have weight 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from arch_jax.ops.precision import at_least_float32, look_up

__all__ = ["is_real", "propagate", "propagate_reference", "symmetric_weights", "symmetric_weights_reference"]


def is_real(count: Int[Array, ""], size: int) -> Bool[Array, "size"]:
    """True for the first `count` of `size` nodes or edges; the rest is padding."""
    return jnp.arange(size) < count


def propagate(
    nodes: Float[Array, "nodes features"],
    senders: Int[Array, "edges"],
    receivers: Int[Array, "edges"],
    weights: Float[Array, "edges"],
) -> Float[Array, "nodes features"]:
    """y_i = sum over edges j -> i of w_ji x_j: the product with the weighted adjacency matrix, edge by edge.

    An edge from a node that does not exist gives NaN where it ends; one to such a node ends nowhere.

    Returns:
      A row a node, in the dtype of `nodes`; 0 where no edge arrives. Sums are made in at least float32.
    """
    precise = jnp.promote_types(nodes.dtype, jnp.float32)
    messages = look_up(nodes.astype(precise), senders) * weights[:, None].astype(precise)
    return jax.ops.segment_sum(messages, receivers, nodes.shape[0]).astype(nodes.dtype)


def propagate_reference(nodes, senders, receivers, weights):
    """`propagate` by the dense matrix."""
    matrix = jnp.zeros((len(nodes), len(nodes)), weights.dtype).at[receivers, senders].add(weights)
    return (matrix @ nodes).astype(nodes.dtype)


def symmetric_weights(
    senders: Int[Array, "edges"],
    receivers: Int[Array, "edges"],
    weights: Float[Array, "edges"],
    loops: Float[Array, "nodes"],
) -> tuple[Float[Array, "edges"], Float[Array, "nodes"]]:
    """The entries of D^(-1/2) (A + L) D^(-1/2), D having A + L's row sums on its diagonal (1609.02907, section 2).

    Args:
      senders: where each edge begins.
      receivers: where each edge ends.
      weights: of the edges: A's entries.
      loops: L's diagonal, a weight for each node's edge to itself.

    Returns:
      The weight of each edge, and that of each node's loop; 0 at nodes without any weight.
    """
    dtypes = weights.dtype, loops.dtype
    weights, loops = at_least_float32((weights, loops))
    degree = loops + jax.ops.segment_sum(weights, receivers, loops.shape[0])
    inverse = jnp.where(degree > 0, jax.lax.rsqrt(jnp.where(degree > 0, degree, 1)), 0)
    begin, end = (look_up(inverse[:, None], ends)[:, 0] for ends in (senders, receivers))
    of_edges, of_loops = begin * weights * end, loops * inverse**2
    return of_edges.astype(dtypes[0]), of_loops.astype(dtypes[1])


def symmetric_weights_reference(senders, receivers, weights, loops):
    """`symmetric_weights` by the dense matrix."""
    matrix = jnp.diag(loops).at[receivers, senders].add(weights)
    degree = matrix.sum(axis=1)
    inverse = jnp.where(degree > 0, degree**-0.5, 0)
    return inverse[senders] * weights * inverse[receivers], inverse * loops * inverse
