"""Semi-supervised classification of a graph's nodes (Kipf & Welling 2017, 1609.02907, section 3)."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.graph_embedding import NodeEmbedding
from arch_jax.inputs import calls
from arch_jax.objectives.base import Batch, ObjectiveBase, Pair
from arch_jax.ops.losses import cross_entropy, weighted


@component("nodes", kind="objective")
@dataclasses.dataclass(frozen=True)
class NodeClasses(ObjectiveBase):
    """-log p(class | node, graph), in nats, over the labelled nodes (equation 10), with weight decay in the loss.

    Attributes:
      model: the graph network; filled in by the experiment.
      l2: strength of l2/2 * |W|^2, added to the loss in training.
      l2_on: a pattern of the parameters that it holds for; the paper decays its first layer only.
    """

    l2: float = 0.0
    l2_on: str = "^convolution_0/.*kernel$"

    def __post_init__(self) -> None:
        if not self.l2 >= 0:
            raise UsageError(f"l2 is {self.l2}; expected at least 0")
        try:
            re.compile(self.l2_on)
        except re.error as problem:
            raise UsageError(f"l2_on is {self.l2_on!r}, which is not a pattern: {problem}") from None

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The nodes in the plane, by their logits."""
        return (NodeEmbedding(),)

    def arguments(self, batch: Batch) -> tuple:
        return calls.graph_network(batch)

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        logits, updates = self.apply(variables, *self.arguments(batch), key=key)
        metrics = self._metrics(logits, batch, batch["weights"])
        total, weight = metrics["loss"]
        if self.l2:
            total = total + weight * self._decay(variables["params"])
        return (total, weight), (metrics, updates)

    def _decay(self, parameters: Any) -> jax.Array:
        flat = jax.tree_util.tree_flatten_with_path(parameters)[0]
        named = {"/".join(str(getattr(k, "key", k)) for k in path): leaf for path, leaf in flat}
        decayed = [leaf for name, leaf in named.items() if re.search(self.l2_on, name)]
        if not decayed:
            raise UsageError(
                f"l2_on {self.l2_on!r} matches none of the parameters; expected a pattern of {', '.join(named)}"
            )
        return self.l2 / 2 * sum(jnp.sum(jnp.square(leaf)) for leaf in decayed)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """Nats ("loss") and "accuracy" over the validation nodes; "test_accuracy" where the batch marks test nodes."""
        logits = self.model.apply(variables, *self.arguments(batch))
        metrics = self._metrics(logits, batch, batch["weights"])
        if "test_weights" in batch:
            metrics["test_accuracy"] = self._metrics(logits, batch, batch["test_weights"])["accuracy"]
        return metrics

    def _metrics(self, logits: jax.Array, batch: Batch, weights: Any) -> dict[str, Pair]:
        nats = cross_entropy(logits, batch["labels"])
        right = (jnp.argmax(logits, axis=-1) == batch["labels"]).astype(nats.dtype)
        return {"loss": weighted(nats, weights), "accuracy": weighted(right, weights)}

    def check(self, data: Any) -> None:
        """The labels must be among the model's classes."""
        if "senders" not in data.shapes or data.classes is None:
            raise UsageError(
                f"the objective 'nodes' takes a graph with labelled nodes, and the data has {', '.join(data.shapes)}; "
                "expected nodes, senders, receivers and labels, such as arch_jax.Nodes()"
            )
        if data.classes > self.model.classes:
            raise UsageError(
                f"model.classes is {self.model.classes}, but the labels go up to {data.classes - 1}; "
                f"set model.classes={data.classes}"
            )
