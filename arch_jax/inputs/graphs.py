"""Example inputs of graph networks."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax.inputs import calls
from arch_jax.inputs.base import Batch


@dataclasses.dataclass(frozen=True)
class GraphInputs:
    """Random graphs with a label on each node, side by side: the arrays of `Graph`, and `labels`, `weights` "nodes".

    Attributes:
      nodes: of each graph; the last of all is padding.
      edges: of each graph; the last of all is padding.
      features: of each node.
    """

    nodes: int
    edges: int
    features: int
    names = ("nodes", "senders", "receivers", "sizes")
    arguments = staticmethod(calls.graph_network)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """`size` graphs of uniform edges; the last node and edge are padding, without weight."""
        keys = jax.random.split(key, 4)
        start = jnp.repeat(jnp.arange(size) * self.nodes, self.edges)
        ends = [jax.random.randint(k, (size * self.edges,), 0, self.nodes - 1) + start for k in keys[:2]]
        real = jnp.full((size, 2), jnp.array([self.nodes, self.edges]), jnp.int32).at[-1].add(-1)
        last = size * self.nodes - 1
        return {
            "nodes": jax.random.normal(keys[2], (size * self.nodes, self.features)).at[last].set(0),
            "senders": ends[0].at[-1].set(last).astype(jnp.int32),
            "receivers": ends[1].at[-1].set(last).astype(jnp.int32),
            "sizes": real,
            "labels": jax.random.randint(keys[3], (size * self.nodes,), 0, module.classes, dtype=jnp.int32),
            "weights": jnp.ones((size * self.nodes,)).at[last].set(0),
        }

    def resized(self, module: nn.Module) -> "GraphInputs":
        """At most 7 nodes, 12 edges and 5 features."""
        return GraphInputs(min(self.nodes, 7), min(self.edges, 12), min(self.features, 5))

    def permuted(self, batch: Batch, key: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        """The nodes under other numbers, and the edges in another order: the same graph. Padding stays where it is."""
        count, edges = len(batch["nodes"]) - 1, len(batch["senders"]) - 1
        order = jnp.append(jax.random.permutation(key, count), count)
        places = jnp.append(jax.random.permutation(jax.random.fold_in(key, 1), edges), edges)
        number = jnp.argsort(order)  # where each node now is
        return {
            **{name: batch[name][order] for name in ("nodes", "labels", "weights")},
            **{name: number[batch[name]][places].astype(jnp.int32) for name in ("senders", "receivers")},
            "sizes": batch["sizes"],
        }, order


def graphs(nodes: int, edges: int, features: int) -> GraphInputs:
    """Example inputs of a graph network."""
    return GraphInputs(nodes, edges, features)
