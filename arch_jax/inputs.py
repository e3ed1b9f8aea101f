"""Example inputs of the kinds of model: what a registered name says of what it takes.

From these, counts are made by `jax.eval_shape`, and the contract suite makes its batches. The arrays have the names and
shapes of the batches that `arch_jax.data` gives.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax.graph import Graph

Batch = Mapping[str, Any]  # arrays, or their shapes


@runtime_checkable
class Inputs(Protocol):
    """Makes example batches for a model: real ones from a key, abstract ones under `jax.eval_shape`."""

    #: What of a batch the model sees; the rest is for the objective.
    names: tuple[str, ...]

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """A batch of `size` examples as the model's objective takes it."""
        ...

    def resized(self, module: nn.Module) -> "Inputs":
        """The same for a tiny module: cut to what it can take."""
        ...

    def arguments(self, batch: Batch) -> tuple:
        """What the model is called with."""
        ...

    def permuted(self, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """The batch in another order that means the same, and where each row of the outputs then comes from."""
        ...


class Rows:
    """Examples on the leading axis of every array: what most kinds of inputs share."""

    def resized(self, module: nn.Module) -> "Rows":
        """As it is: these inputs do not grow with a model's size."""
        return self

    def arguments(self, batch: Batch) -> tuple:
        """The arrays that the model sees, in order."""
        return tuple(batch[name] for name in self.names)

    def permuted(self, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """The examples in another order."""
        order = jax.random.permutation(key, len(batch[self.names[0]]))
        return {name: x[order] for name, x in batch.items()}, order


@dataclasses.dataclass(frozen=True)
class Tokens(Rows):
    """Random token sequences for a language model: `tokens`, `targets`, `weights`, each "batch length".

    Attributes:
      length: tokens in a sequence; fewer where the module's table of positions is shorter.
    """

    length: int
    names = ("tokens",)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Uniform tokens of the module's vocabulary; each target is the next token."""
        length = min(self.length, getattr(getattr(module, "position", None), "length", self.length))
        stream = jax.random.randint(key, (size, length + 1), 0, module.vocabulary, dtype=jnp.int32)
        return {"tokens": stream[:, :-1], "targets": stream[:, 1:], "weights": jnp.ones((size, length))}

    def resized(self, module: nn.Module) -> "Tokens":
        """At most 12 tokens: enough for every mask, cheap enough for every test."""
        return Tokens(min(self.length, 12))


@dataclasses.dataclass(frozen=True)
class Pairs(Rows):
    """Random pairs for an encoder-decoder: `source` and `source_mask` "batch source"; `target`, `labels`, `weights`.

    Attributes:
      source: tokens of a source; the sources of a batch have different numbers of real ones.
      target: tokens of a target.
    """

    source: int
    target: int
    names = ("source", "target", "source_mask")

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Tokens of the module's vocabulary; each label is the target's next token."""
        drawing, length, labelling = jax.random.split(key, 3)
        room = getattr(getattr(module, "position", None), "length", max(self.source, self.target))
        source, target = min(self.source, room), min(self.target, room)
        real = jax.random.randint(length, (size, 1), min(2, source), source + 1)
        stream = jax.random.randint(labelling, (size, target + 1), 0, module.vocabulary, dtype=jnp.int32)
        return {
            "source": jax.random.randint(drawing, (size, source), 0, module.vocabulary, dtype=jnp.int32),
            "source_mask": jnp.arange(source) < real,
            "target": stream[:, :-1],
            "labels": stream[:, 1:],
            "weights": jnp.ones((size, target)),
        }

    def resized(self, module: nn.Module) -> "Pairs":
        """At most 9 and 7 tokens."""
        return Pairs(min(self.source, 9), min(self.target, 7))


@dataclasses.dataclass(frozen=True)
class Encoded(Rows):
    """Random sequences for an encoder: `tokens`, `types`, `mask` "batch length"; `next`, `weights` "batch".

    Attributes:
      length: tokens of a sequence; fewer where the module's table of positions is shorter. The sequences of a batch
        have different numbers of real ones.
    """

    length: int
    names = ("tokens", "types", "mask")

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Tokens of the module's vocabulary but the last.

        Low ids are frequent, as some words are, so that there is something to learn in a few steps.
        """
        keys = jax.random.split(key, 4)
        length = min(self.length, getattr(getattr(module, "position", None), "length", self.length))
        ids = (module.vocabulary - 1) * jax.random.uniform(keys[0], (size, length)) ** 4
        real = jax.random.randint(keys[1], (size, 1), -(-length // 2), length + 1)
        border = jax.random.randint(keys[2], (size, 1), 1, max(2, length // 2))
        return {
            "tokens": ids.astype(jnp.int32),
            "types": (jnp.arange(length) > border).astype(jnp.int32),
            "mask": jnp.arange(length) < real,
            "next": jax.random.randint(keys[3], (size,), 0, 2, dtype=jnp.int32),
            "weights": jnp.ones((size,)),
        }

    def resized(self, module: nn.Module) -> "Encoded":
        """At most 12 tokens."""
        return Encoded(min(self.length, 12))


@dataclasses.dataclass(frozen=True)
class Images(Rows):
    """Random pictures with labels: `images` "batch size size channels" in [0, 1], `labels` and `weights` "batch".

    Attributes:
      size: pixels on a side.
      channels: 1 for grey, 3 for colour.
    """

    size: int
    channels: int = 3
    names = ("images",)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Uniform pixels; labels among the module's classes, or among 10 where it has none."""
        pixels, classes = jax.random.split(key)
        return {
            "images": jax.random.uniform(pixels, (size, self.size, self.size, self.channels)),
            "labels": jax.random.randint(classes, (size,), 0, getattr(module, "classes", None) or 10, dtype=jnp.int32),
            "weights": jnp.ones((size,)),
        }

    def resized(self, module: nn.Module) -> "Images":
        """At most 64 pixels on a side, or as many as the module says that it takes in its field `picture`."""
        return dataclasses.replace(self, size=getattr(module, "picture", min(self.size, 64)))


@dataclasses.dataclass(frozen=True)
class LabelledImages(Images):
    """Random pictures for a model that is given their classes too."""

    names = ("images", "labels")


@dataclasses.dataclass(frozen=True)
class Points(Rows):
    """Random points for a generative adversarial pair: the real `x` "batch features" and a `latent` "batch latent".

    Attributes:
      features: coordinates of a point.
    """

    features: int
    names = ("latent",)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Normal points and latents."""
        real, latent = jax.random.split(key)
        return {
            "x": jax.random.normal(real, (size, self.features)),
            "latent": jax.random.normal(latent, (size, module.generator.latent)),
        }


@dataclasses.dataclass(frozen=True)
class Vectors(Rows):
    """Random vectors for an autoencoder: `x` "batch features".

    Attributes:
      features: coordinates of a vector.
    """

    features: int
    names = ("x",)

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """Normal numbers."""
        return {"x": jax.random.normal(key, (size, self.features))}

    def resized(self, module: nn.Module) -> "Vectors":
        """As many coordinates as the module takes."""
        return Vectors(module.features)


@dataclasses.dataclass(frozen=True)
class Graphs:
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

    def resized(self, module: nn.Module) -> "Graphs":
        """At most 7 nodes, 12 edges and 5 features."""
        return Graphs(min(self.nodes, 7), min(self.edges, 12), min(self.features, 5))

    def arguments(self, batch: Batch) -> tuple:
        """The graph."""
        return (Graph(batch["nodes"], batch["senders"], batch["receivers"], batch.get("edges"), batch["sizes"]),)

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


def tokens(length: int) -> Tokens:
    """Example inputs of a language model: sequences of `length` tokens."""
    return Tokens(length)


def pairs(source: int, target: int) -> Pairs:
    """Example inputs of an encoder-decoder: sources of `source` tokens with targets of `target` tokens."""
    return Pairs(source, target)


def encoded(length: int) -> Encoded:
    """Example inputs of an encoder: sequences of `length` tokens, of two types and with padding."""
    return Encoded(length)


def images(size: int, channels: int = 3) -> Images:
    """Example inputs of an image model: pictures of `size` x `size` pixels."""
    return Images(size, channels)


def labelled_images(size: int, channels: int = 3) -> LabelledImages:
    """Example inputs of an image model that is given each picture's class."""
    return LabelledImages(size, channels)


def points(features: int) -> Points:
    """Example inputs of an adversarial pair on points."""
    return Points(features)


def vectors(features: int) -> Vectors:
    """Example inputs of an autoencoder of vectors."""
    return Vectors(features)


def graphs(nodes: int, edges: int, features: int) -> Graphs:
    """Example inputs of a graph network."""
    return Graphs(nodes, edges, features)
