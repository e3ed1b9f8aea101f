import itertools
import json

import jaxtyping
import numpy as np
import pytest

from arch_jax.data import Nodes
from arch_jax.data.files import directories
from arch_jax.data.graphs import planetoid
from arch_jax.errors import UsageError
from arch_jax.fields import from_json, to_json

REFUSED = (UsageError, jaxtyping.TypeCheckError)

# Looked for when this file is read, before the tests replace the environment. A download that failed leaves the folder.
FILES = [
    directories.find(f"planetoid/ind.{name}.{part}") for name in planetoid.HASHES for part in planetoid.HASHES[name]
]
REAL = FILES[0].parent if all(FILES) else None
needs_planetoid = pytest.mark.skipif(
    REAL is None, reason="the Planetoid data is not in the data folder ($ARCH_JAX_DATA or the user's cache)"
)


@pytest.fixture
def planetoid_folder(monkeypatch):
    monkeypatch.setenv("ARCH_JAX_DATA", str(REAL.parent))


@pytest.fixture(scope="module")
def karate():
    return Nodes().load()


def test_the_karate_club_is_zacharys(karate):
    facts = json.loads(json.dumps(karate.facts))
    assert len(facts.pop("sha256")) == 64
    assert facts == {
        "source": "karate",
        "nodes": 34,
        "edges": 78,
        "features": 34,
        "classes": 2,
        "train_nodes": 2,
        "validation_nodes": 32,
        "test_nodes": 32,
    }
    assert (karate.classes, karate.class_names) == (2, ("Mr. Hi", "Officer"))
    assert np.array_equal(karate.graph.nodes, np.eye(34))
    degrees = np.bincount(karate.graph.senders)
    assert (degrees[0], degrees[33], degrees[11]) == (16, 17, 1)  # the instructor, the administrator, member 12
    assert from_json(to_json(Nodes("cora", 64))) == Nodes("cora", 64)


def test_the_graph_is_undirected_without_loops(karate):
    forward = set(zip(karate.graph.senders.tolist(), karate.graph.receivers.tolist()))
    assert len(forward) == len(karate.graph.senders) == 156
    assert forward == {(b, a) for a, b in forward}
    assert not any(a == b for a, b in forward)


@pytest.mark.parametrize(("multiple", "nodes", "edges"), [(128, 128, 256), (1, 35, 156), (34, 68, 170), (10, 40, 160)])
def test_it_is_padded_with_at_least_one_node(multiple, nodes, edges):
    corpus = Nodes(multiple=multiple).load()
    batch = next(corpus.train(0))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == corpus.shapes
    assert corpus.shapes == {
        "nodes": ((nodes, 34), "float32"),
        "senders": ((edges,), "int32"),
        "receivers": ((edges,), "int32"),
        "sizes": ((1, 2), "int32"),
        "labels": ((nodes,), "int32"),
        "weights": ((nodes,), "float32"),
    }
    assert batch["sizes"].tolist() == [[34, 156]]
    assert not batch["labels"][34:].any()
    assert not batch["weights"][34:].any()
    assert not batch["nodes"][34:].any()
    assert (batch["senders"][156:] == nodes - 1).all()
    assert (batch["receivers"][156:] == nodes - 1).all()
    assert corpus.graph.nodes.shape == (34, 34)
    assert (corpus.unit, corpus.units_per_batch, corpus.full_batch) == ("nodes", 34, True)


def test_weights_say_which_nodes_count(karate):
    train = next(karate.train(0))
    (held_out,) = karate.validation()
    assert np.flatnonzero(train["weights"]).tolist() == [0, 33]
    assert train["labels"][[0, 33]].tolist() == [0, 1]
    assert np.flatnonzero(held_out["weights"]).tolist() == list(range(1, 33))
    assert np.array_equal(held_out["weights"], held_out["test_weights"])
    assert "test_weights" not in train
    assert len(karate.validation()) == 1


def test_every_batch_is_the_same_and_cannot_be_changed(karate):
    batches = list(itertools.islice(karate.train(0), 3))
    assert batches[0] is batches[1] is batches[2] is next(karate.train(9, shard=(1, 3)))
    with pytest.raises(ValueError, match="read-only"):
        batches[0]["labels"][0] = 1


def test_the_iterator_is_resumed(karate):
    iterator = karate.train(0)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    for through in (lambda x: x, lambda x: json.dumps(x).encode()):
        restored = karate.train(0)
        restored.set_state(through(state))
        assert restored.get_state() == state
        next(restored)
        assert restored.get_state() != state
    for wrong in ({}, {"next_index": -1}, b"{"):
        with pytest.raises(UsageError, match="an iterator's state is"):
            karate.train(0).set_state(wrong)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"source": "kora"}, "unknown source 'kora'; the nearest are 'cora', 'karate'"),
        ({"source": "pubmed"}, "unknown source 'pubmed'"),
        ({"multiple": 0}, "multiple is 0; expected a whole number of at least 1"),
    ],
)
def test_a_wrong_field_is_one_sentence(fields, says):
    with pytest.raises(REFUSED) as caught:
        Nodes(**fields)
    assert says in str(caught.value) or not isinstance(caught.value, UsageError)


@pytest.mark.parametrize(("seed", "shard"), [(-1, (0, 1)), (0, (1, 1)), (0, (0, 0)), (0, 3)])
def test_a_wrong_seed_or_shard_is_refused(karate, seed, shard):
    with pytest.raises(REFUSED):
        karate.train(seed, shard)


@needs_planetoid
@pytest.mark.parametrize(
    ("source", "nodes", "edges", "features", "per_class"),
    [
        # Labels per class and undirected edges without loops, as the field counts them.
        ("cora", 2708, 5278, 1433, [351, 217, 418, 818, 426, 298, 180]),
        ("citeseer", 3327, 4552, 3703, [264, 590, 668, 701, 596, 508]),
    ],
)
def test_the_citation_networks(planetoid_folder, source, nodes, edges, features, per_class):
    corpus = Nodes(source).load()
    train, (held_out,) = next(corpus.train(0)), corpus.validation()
    assert (corpus.facts["nodes"], corpus.facts["edges"], corpus.facts["features"]) == (nodes, edges, features)
    assert np.bincount(train["labels"][:nodes]).tolist() == per_class
    assert all(len(train[name]) % 128 == 0 for name in train if name != "sizes")
    weights = [train["weights"], held_out["weights"], held_out["test_weights"]]
    assert [int(w.sum()) for w in weights] == [20 * corpus.classes, 500, 1000]
    assert (sum(weights) <= 1).all()  # no node is in two parts
    assert np.bincount(train["labels"], train["weights"]).tolist() == [20] * corpus.classes
    sums = train["nodes"].sum(axis=1)
    assert sums[sums > 0] == pytest.approx(1, abs=1e-5)


@needs_planetoid
def test_citeseers_isolated_test_nodes_count_nowhere(planetoid_folder):
    corpus = Nodes("citeseer").load()
    train, (held_out,) = next(corpus.train(0)), corpus.validation()
    nothing = np.flatnonzero(train["nodes"][:3327].sum(axis=1) == 0)
    assert len(nothing) == 15
    assert nothing.min() > 2312
    for weights in (train["weights"], held_out["weights"], held_out["test_weights"]):
        assert not weights[nothing].any()
    assert not train["labels"][nothing].any()
