import jaxtyping
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.graph import Graph, batched, graph, pad_graph, symmetric

REFUSED = (UsageError, jaxtyping.TypeCheckError)


def ones(nodes, features=2):
    return np.ones((nodes, features), np.float32)


@pytest.fixture
def path():
    """0 -> 1 -> 2, and the isolated 3."""
    return graph(np.arange(8, dtype=np.float32).reshape(4, 2), [0, 1], [1, 2])


def pairs(one):
    return sorted(zip(one.senders.tolist(), one.receivers.tolist()))


def test_a_graph_keeps_what_it_was_given(path):
    assert isinstance(path, Graph)
    assert pairs(path) == [(0, 1), (1, 2)]
    assert path.senders.dtype == path.receivers.dtype == path.sizes.dtype == np.int32
    assert path.sizes.tolist() == [[4, 2]]
    assert path.edges is None


@pytest.mark.parametrize(
    ("senders", "receivers", "says"),
    [
        ([0, 4], [1, 1], "edge 1 has node 4 among its senders, which does not exist; expected nodes from 0 to 3"),
        ([0], [-1], "edge 0 has node -1 among its receivers, which does not exist"),
        ([0, 1], [1], "2 senders, 1 receivers; expected as many of each"),
        ([0.0], [1], "senders has shape (1,) and dtype float64; expected integers"),
        ([[0]], [1], "senders has shape (1, 1)"),
    ],
)
def test_wrong_edges_are_one_sentence(senders, receivers, says):
    with pytest.raises(UsageError) as caught:
        graph(ones(4), senders, receivers)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_edge_index_beyond_int32_is_not_wrapped_into_the_graph():
    with pytest.raises(UsageError, match="has node 4294967296 among its senders"):
        graph(ones(4), np.array([2**32]), [1])


@pytest.mark.parametrize("nodes", [ones(0), np.ones(3)])
def test_no_nodes_is_one_sentence(nodes):
    with pytest.raises(REFUSED) as caught:
        graph(nodes, [], [])
    assert "the nodes' features have shape" in str(caught.value) or not isinstance(caught.value, UsageError)


def test_as_many_edge_features_as_edges():
    assert graph(ones(2), [0], [1], np.ones((1, 3))).edges.shape == (1, 3)
    with pytest.raises(UsageError, match="1 senders, 1 receivers, 2 edges; expected as many of each"):
        graph(ones(2), [0], [1], np.ones((2, 3)))


def test_a_graph_without_edges_works_everywhere():
    one = graph(ones(3), [], [])
    assert pairs(one) == pairs(symmetric(one)) == []
    assert one.senders.dtype == np.int32
    assert pad_graph(one, 5, 4).senders.tolist() == [4] * 4
    assert batched([one, one]).sizes.tolist() == [[3, 0], [3, 0]]


def test_symmetric_has_each_edge_in_both_directions_once_and_no_loops():
    one = symmetric(graph(ones(4), [0, 1, 0, 2, 2], [1, 0, 1, 2, 0]))
    assert pairs(one) == [(0, 1), (0, 2), (1, 0), (2, 0)]
    assert one.sizes.tolist() == [[4, 4]]  # the isolated node stays


def test_together_moves_node_numbers_up(path):
    one = batched([path, graph(ones(1), [0], [0]), path])
    assert pairs(one) == [(0, 1), (1, 2), (4, 4), (5, 6), (6, 7)]
    assert one.sizes.tolist() == [[4, 2], [1, 1], [4, 2]]
    assert np.array_equal(one.nodes[5:], path.nodes)
    assert one.senders.dtype == np.int32


def test_together_keeps_edge_features():
    one = graph(ones(2), [0], [1], np.array([[1.0]]))
    other = graph(ones(2), [1], [0], np.array([[2.0]]))
    assert batched([one, other]).edges.tolist() == [[1.0], [2.0]]


def test_what_does_not_go_together_is_one_sentence(path):
    with pytest.raises(UsageError, match="there are 0 graphs to put together"):
        batched([])
    with pytest.raises(UsageError, match=r"the graphs' nodes have \[2, 3\] features; expected as many in each"):
        batched([path, graph(ones(2, 3), [], [])])


def test_padding_stands_at_the_end_and_joins_the_last_node(path):
    one = pad_graph(path, 7, 5)
    assert one.nodes.shape == (7, 2)
    assert not one.nodes[4:].any()
    assert one.senders.tolist() == [0, 1, 6, 6, 6]
    assert one.receivers.tolist() == [1, 2, 6, 6, 6]
    assert one.sizes.tolist() == [[4, 2]]
    assert pad_graph(path, 4, 2).senders.tolist() == [0, 1]


def test_padding_edge_features():
    one = pad_graph(graph(ones(2), [0], [1], np.array([[5.0]])), 3, 3)
    assert one.edges.tolist() == [[5.0], [0.0], [0.0]]


@pytest.mark.parametrize(
    ("nodes", "edges", "says"),
    [
        (3, 9, "the graph has 4 nodes, and 3 fit; expected room for at least 4"),
        (9, 1, "the graph has 2 edges, and 1 fit; expected room for at least 2"),
        (
            4,
            3,
            "1 padding edges need a padding node to stand at, and nodes is 4, all of them real; expected at least 5",
        ),
    ],
)
def test_too_little_room_is_one_sentence(path, nodes, edges, says):
    with pytest.raises(UsageError) as caught:
        pad_graph(path, nodes, edges)
    assert says in str(caught.value)
