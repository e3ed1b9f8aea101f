"""The graph convolutional network against torch-geometric's GCN, on the same weights."""

import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.graph import graph, pad_graph, symmetric

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
geometric = pytest.importorskip(
    "torch_geometric", reason="parity needs torch-geometric: pip install arch-jax[parity]", exc_type=ImportError
)


def pair(hidden, classes, features, bias, seed):
    torch.manual_seed(seed)
    from torch_geometric.nn import GCN

    theirs = GCN(features, hidden[0] if hidden else classes, len(hidden) + 1, classes, bias=bias).eval()
    ours = arch_jax.create("gcn", classes=classes, hidden=hidden, bias=bias)
    params = {}
    for i, layer in enumerate(theirs.convs):
        params[f"convolution_{i}"] = {"dense": {"kernel": jnp.asarray(layer.lin.weight.detach().numpy().T)}}
        if bias:
            with torch.no_grad():
                layer.bias.uniform_(-1, 1)
            params[f"convolution_{i}"]["bias"] = jnp.asarray(layer.bias.detach().numpy())
    return theirs, ours, {"params": params}


def random_graph(nodes, edges, features, seed):
    draw = np.random.default_rng(seed)
    ends = draw.integers(0, nodes, (2, edges))
    return symmetric(graph(draw.normal(size=(nodes, features)).astype(np.float32), *ends))


@pytest.mark.parametrize(
    ("hidden", "bias", "nodes", "edges"),
    [((16,), False, 40, 100), ((8, 8), True, 25, 30), ((), True, 10, 12), ((5,), False, 6, 0), ((4,), True, 30, 8)],
    ids=["paper", "three layers with biases", "one layer", "no edges", "isolated nodes"],
)
def test_logits(hidden, bias, nodes, edges):
    theirs, ours, variables = pair(hidden, 3, 7, bias, seed=nodes)
    it = random_graph(nodes, edges, 7, seed=edges)
    ends = torch.from_numpy(np.stack([it.senders, it.receivers]).astype(np.int64))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(it.nodes), ends).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(ours.apply(variables, it), expected, atol=1e-5)
    wider = pad_graph(it, nodes + 5, len(it.senders) + 9)
    np.testing.assert_allclose(ours.apply(variables, wider)[:nodes], expected, atol=1e-5)


def test_weighted_edges():
    theirs, ours, variables = pair((6,), 4, 5, True, seed=0)
    it = random_graph(20, 50, 5, seed=3)
    weights = np.random.default_rng(4).uniform(0.1, 2, len(it.senders)).astype(np.float32)
    ends = torch.from_numpy(np.stack([it.senders, it.receivers]).astype(np.int64))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(it.nodes), ends, edge_weight=torch.from_numpy(weights)).numpy()
    np.testing.assert_allclose(ours.apply(variables, it._replace(edges=weights)), expected, atol=1e-5)
