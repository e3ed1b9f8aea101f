"""Graphs as arrays of fixed size: checks, padding and batching."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from arch_jax.errors import UsageError

__all__ = ["Graph", "batched", "graph", "pad_graph", "symmetric"]


class Graph(NamedTuple):
    """One graph, or several side by side that share no edge, padded to fixed sizes (a pytree of arrays).

    Padding nodes and edges stand at the end; padding edges join the last node, which is padding wherever there is
    padding, to itself. `sizes` says how many nodes and edges are real: the rest is padding.

    Attributes:
      nodes: features, "nodes features".
      senders: where each edge begins, "edges", int32.
      receivers: where it ends, "edges", int32.
      edges: features or weights of the edges, "edges features" or "edges"; None where they have none.
      sizes: real (nodes, edges) of each graph, "graphs 2", int32; their sums are what is not padding.
    """

    nodes: Any
    senders: Any
    receivers: Any
    edges: Any
    sizes: Any


def graph(nodes: np.ndarray, senders: Any, receivers: Any, edges: np.ndarray | None = None) -> Graph:
    """A graph without padding, checked.

    Args:
      nodes: features, "nodes features".
      senders: where each edge begins; indices in [0, nodes).
      receivers: where each edge ends; as many.
      edges: features of the edges; as many.

    Raises:
      UsageError: an edge to or from a node that does not exist; lengths that differ; no nodes.
    """
    nodes = np.asarray(nodes)
    if nodes.ndim != 2 or not len(nodes):
        raise UsageError(
            f"the nodes' features have shape {nodes.shape}; expected (nodes, features) with 1 node or more"
        )
    ends = []
    for name, given in (("senders", senders), ("receivers", receivers)):
        array = np.asarray(given if len(given) else np.zeros(0, np.int32))
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise UsageError(f"{name} has shape {array.shape} and dtype {array.dtype}; expected integers, one an edge")
        wrong = np.flatnonzero((array < 0) | (array >= len(nodes)))
        if len(wrong):
            raise UsageError(
                f"edge {wrong[0]} has node {array[wrong[0]]} among its {name}, which does not exist; expected nodes "
                f"from 0 to {len(nodes) - 1}"
            )
        ends.append(array.astype(np.int32))
    counts = {"senders": len(ends[0]), "receivers": len(ends[1])} | ({} if edges is None else {"edges": len(edges)})
    if len(set(counts.values())) > 1:
        given = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UsageError(f"the graph has {given}; expected as many of each")
    return Graph(nodes, *ends, edges, np.array([[len(nodes), len(ends[0])]], np.int32))


def symmetric(one: Graph) -> Graph:
    """The undirected graph: every edge in both directions, each once, without loops; edge features are dropped."""
    pairs = np.stack([np.concatenate([one.senders, one.receivers]), np.concatenate([one.receivers, one.senders])])
    pairs = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1)
    return graph(one.nodes, *pairs)


def batched(graphs: Sequence[Graph]) -> Graph:
    """Several unpadded graphs side by side, as one: node numbers move up by the nodes before.

    Raises:
      UsageError: there are none, or their features differ in size.
    """
    if not graphs:
        raise UsageError("there are 0 graphs to put together; expected at least 1")
    widths = {one.nodes.shape[1] for one in graphs}
    if len(widths) > 1:
        raise UsageError(f"the graphs' nodes have {sorted(widths)} features; expected as many in each")
    starts = np.cumsum([0] + [len(one.nodes) for one in graphs[:-1]])
    moved = lambda name: np.concatenate([getattr(g, name) + s for g, s in zip(graphs, starts)]).astype(np.int32)
    edges = None if graphs[0].edges is None else np.concatenate([one.edges for one in graphs])
    nodes = np.concatenate([one.nodes for one in graphs])
    return Graph(nodes, moved("senders"), moved("receivers"), edges, np.concatenate([one.sizes for one in graphs]))


def pad_graph(one: Graph, nodes: int, edges: int) -> Graph:
    """The graph with padding up to `nodes` nodes and `edges` edges, so that graphs of many sizes share one program.

    Raises:
      UsageError: it is larger; or there is padding of edges and no padding node for it to stand at.
    """
    more_nodes, more_edges = nodes - len(one.nodes), edges - len(one.senders)
    for name, more, there, wanted in (
        ("nodes", more_nodes, len(one.nodes), nodes),
        ("edges", more_edges, len(one.senders), edges),
    ):
        if more < 0:
            raise UsageError(f"the graph has {there} {name}, and {wanted} fit; expected room for at least {there}")
    if more_edges and not more_nodes:
        raise UsageError(
            f"{more_edges} padding edges need a padding node to stand at, and nodes is {nodes}, all of them real; "
            f"expected at least {nodes + 1}"
        )
    grow = lambda x, more, value: np.pad(x, [(0, more), *[(0, 0)] * (x.ndim - 1)], constant_values=value)
    return Graph(
        grow(one.nodes, more_nodes, 0),
        grow(one.senders, more_edges, nodes - 1),
        grow(one.receivers, more_edges, nodes - 1),
        None if one.edges is None else grow(one.edges, more_edges, 0),
        one.sizes,
    )
