"""One graph whose nodes are to be classified, given whole in every batch."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from arch_jax.data.base import Corpus, check_shard, check_whole
from arch_jax.errors import UsageError, unknown
from arch_jax.fields import component
from arch_jax.graph import Graph, graph, pad_graph, symmetric

SOURCES: dict[str, str] = {
    "karate": "Zachary's karate club, 34 members and 78 friendships, which fell apart into 2; comes with networkx",
    "cora": "2,708 papers on machine learning of 7 fields and who cites whom, Planetoid split; downloaded once, 0.6 MB",
    "citeseer": "3,327 papers of 6 fields and who cites whom, Planetoid split; downloaded once, 1 MB",
}


@component("graph_nodes", kind="data")
@dataclasses.dataclass(frozen=True)
class Nodes:
    """A graph, some of whose nodes have labels to learn from. Every batch is the whole graph.

    Attributes:
      source: "karate", "cora" or "citeseer"; see `nodes.SOURCES`.
      multiple: nodes and edges are padded to multiples of this, with at least one node of padding.

    Raises:
      UsageError: if a field is invalid.
    """

    source: str = "karate"
    multiple: int = 128

    def __post_init__(self):
        if not isinstance(self.source, str) or self.source not in SOURCES:
            raise unknown("source", str(self.source), SOURCES)
        check_whole("multiple", self.multiple, 1)

    def load(self) -> "NodesCorpus":
        """Reads the graph.

        Raises:
          UsageError: a library that the source needs is missing.
          RunError: a download failed, or a file is not the one expected.
        """
        return NodesCorpus(self, _karate() if self.source == "karate" else _citations(self.source))


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """A graph with a label for every node, and the nodes of each part.

    Attributes:
      graph: undirected, without padding; features float32 "nodes features".
      labels: int32 "nodes".
      classes: number of classes.
      class_names: their names; None where the source does not say.
      train, validation, test: the nodes of each part.
      sha256: of the content.
    """

    graph: Graph
    labels: np.ndarray
    classes: int
    class_names: tuple[str, ...] | None
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    sha256: str


class NodesCorpus(Corpus):
    """A graph that is read. `Nodes.load` makes it.

    Attributes:
      of: the `Nodes` it came from.
      graph: the graph without padding: undirected (each edge in both directions, once, without loops).
      classes: number of classes.
      class_names: their names; None where the source does not say.
      facts: recorded by a run, as JSON values: source, sha256, nodes, edges (each counted once), features,
        classes, train_nodes, validation_nodes, test_nodes.
    """

    #: Unit in which batches are counted.
    unit = "nodes"
    #: Every batch is one and the same: there is no randomness in the data.
    full_batch = True

    def __init__(self, of: Nodes, found: Labelled):
        self.of, self.graph = of, found.graph
        self.classes, self.class_names = found.classes, found.class_names
        nodes, edges = len(found.graph.nodes), len(found.graph.senders)
        self.facts: dict[str, Any] = {
            "source": of.source,
            "sha256": found.sha256,
            "nodes": nodes,
            "edges": edges // 2,
            "features": found.graph.nodes.shape[1],
            "classes": found.classes,
            "train_nodes": len(found.train),
            "validation_nodes": len(found.validation),
            "test_nodes": len(found.test),
        }
        size = (nodes // of.multiple + 1) * of.multiple
        whole = pad_graph(found.graph, size, -(-edges // of.multiple) * of.multiple)
        shared = {
            "nodes": whole.nodes,
            "senders": whole.senders,
            "receivers": whole.receivers,
            "sizes": whole.sizes,
            "labels": np.pad(found.labels, (0, size - nodes)),
        }

        def weights(chosen: np.ndarray) -> np.ndarray:
            values = np.zeros(size, np.float32)
            values[chosen] = 1
            return values

        self._train = shared | {"weights": weights(found.train)}
        self._validation = shared | {"weights": weights(found.validation), "test_weights": weights(found.test)}
        for array in [*self._train.values(), *self._validation.values()]:
            array.flags.writeable = False  # one batch is all batches: nobody may change it

    @property
    def units_per_batch(self) -> int:
        """Nodes in a batch, without padding."""
        return self.facts["nodes"]

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of a training batch."""
        return {name: (array.shape, array.dtype.name) for name, array in self._train.items()}

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> "Same":
        """The training batch, endlessly: the same dict each time.

        Args:
          seed: 0 <= seed < 2**32; nothing depends on it.
          shard: (index, count). Every shard gets the whole graph, since a node's neighbours may be anywhere in it.

        Returns:
          An iterator with `get_state` and `set_state`. The batch is a dict of `nodes`, float32 "nodes features";
          `senders` and `receivers`, int32 "edges"; `sizes`, int32 "1 2", how many of both are real; `labels`, int32
          "nodes"; and `weights`, float32 "nodes", 1 at the training nodes.

        Raises:
          UsageError: a seed out of range; a shard that does not exist.
        """
        check_whole("seed", seed, 0, 2**32)
        check_shard(shard)
        return Same(self._train)

    def validation(self) -> tuple[dict[str, np.ndarray], ...]:
        """The one validation batch: `weights` are 1 at the validation nodes, and `test_weights` at the test nodes."""
        return (self._validation,)


class Same:
    """Gives one batch forever, and counts how often."""

    def __init__(self, batch: dict[str, np.ndarray]):
        self._batch, self._given = batch, 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        self._given += 1
        return self._batch

    def get_state(self) -> dict[str, int]:
        """The number of times the batch was given, as JSON values."""
        return {"next_index": self._given}

    def set_state(self, state: dict[str, int] | bytes) -> None:
        """Goes to where `get_state` was called; takes its JSON text, too, as Grain's iterators do.

        Raises:
          UsageError: the state is not one of this iterator.
        """
        try:
            state = json.loads(state) if isinstance(state, bytes) else state
            self._given = check_whole("next_index", state["next_index"], 0)
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"an iterator's state is {state!r}; expected one such as {{'next_index': 3}}") from None


def _karate() -> Labelled:
    """W. Zachary, "An Information Flow Model for Conflict and Fission in Small Groups", 1977.

    The only feature is each member's number. The instructor's side and the administrator's are known; everybody else's
    is to be inferred from the friendships alone.
    """
    try:
        import networkx
    except ImportError as error:
        raise UsageError("source 'karate' needs networkx, which is missing; pip install networkx") from error
    club = networkx.karate_club_graph()
    names = ("Mr. Hi", "Officer")
    labels = np.array([names.index(club.nodes[member]["club"]) for member in range(len(club))], np.int32)
    friends = np.array(sorted(club.edges()), np.int32)
    whole = symmetric(graph(np.eye(len(club), dtype=np.float32), *friends.T))
    known, others = np.array([0, 33]), np.arange(1, 33)
    digest = hashlib.sha256(friends.astype("<i4").tobytes() + labels.astype("<i4").tobytes())
    return Labelled(whole, labels, 2, names, known, others, others, digest.hexdigest())


def _citations(name: str) -> Labelled:
    """Cora or Citeseer, each node's features divided by their sum, as T. Kipf's `gcn` does it."""
    from arch_jax.data.graphs.planetoid import citations

    found = citations(name)
    sums = found.features.sum(axis=1, keepdims=True)
    features = np.divide(found.features, sums, out=np.zeros_like(found.features), where=sums > 0)
    whole = symmetric(graph(features, *found.links.T))
    parts = (found.train, found.validation, found.test)
    return Labelled(whole, found.labels, found.classes, None, *parts, found.sha256)
