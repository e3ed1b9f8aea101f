"""A graph's nodes in the plane, placed by a model's logits."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.canvas import library, new_figure


@component("node_embedding", kind="figure")
@dataclasses.dataclass(frozen=True)
class NodeEmbedding(Figure):
    """The nodes in two dimensions: the principal components of the directions of their logits."""

    arrays: ClassVar[tuple[str, ...]] = ("nodes", "senders", "receivers", "sizes", "labels")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        batch = next(iter(data.validation()))
        logits = np.asarray(task.outputs(variables, *task.arguments(batch)), np.float64)
        real, edges = np.asarray(batch["sizes"]).sum(axis=0)[:2]
        labels = np.asarray(batch["labels"])[:real]
        counted = np.asarray(batch["weights"] > 0) | np.asarray(batch.get("test_weights", 0) > 0)
        ends = np.stack([batch["senders"], batch["receivers"]])[:, :edges]
        return {"embeddings": embedding_figure(logits[:real], labels, counted[:real], ends, data.class_names)}


def embedding_figure(
    logits: np.ndarray, labels: np.ndarray, counted: np.ndarray, ends: np.ndarray, class_names: Sequence[str] | None
) -> Any:
    """A figure of the nodes by their two principal components, coloured by class; wrong ones are crossed out."""
    # Directions alone: a node with many neighbours would otherwise be far from all others.
    directions = logits / np.maximum(np.linalg.norm(logits, axis=1, keepdims=True), 1e-12)
    centred = directions - directions.mean(0)
    _, _, axes_of = np.linalg.svd(centred, full_matrices=False)
    # A principal component's sign is arbitrary: fixed, so that the figures of one run follow one another.
    axes_of = axes_of[:2] * np.where(axes_of[:2][np.arange(2), np.abs(axes_of[:2]).argmax(1)] < 0, -1, 1)[:, None]
    places = centred @ axes_of.T
    figure = new_figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.add_subplot()
    lines = np.stack([places[ends[0]], places[ends[1]]], axis=1)
    shade = min(0.5, 60 / max(1, len(lines)))
    look = {"colors": "grey", "linewidths": 0.4, "alpha": max(shade, 0.02), "zorder": 0}
    axes.add_collection(library("collections").LineCollection(lines, **look))
    names = class_names or [f"class {i}" for i in range(int(labels.max()) + 1)]
    size = 40 if len(labels) < 200 else 6
    for i, name in enumerate(names):
        of_class = labels == i
        axes.scatter(*places[of_class].T, s=size, color=f"C{i}", label=str(name), alpha=0.8, linewidths=0)
    wrong = counted & (logits.argmax(1) != labels)
    axes.scatter(*places[wrong].T, s=size, marker="x", color="black", linewidths=0.7)
    share = 100 * (1 - wrong.sum() / max(1, counted.sum()))
    axes.set_title(
        f"nodes by their logits' principal components; {share:.1f} % of {counted.sum()} held-out ones right", size=9
    )
    axes.set(xlabel="first component", ylabel="second component")
    axes.legend(fontsize=7, markerscale=1 if size > 20 else 2.5)
    return figure
