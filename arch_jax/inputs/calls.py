"""The call of each kind of model, from a batch: written once, for example inputs and objectives alike.

The names of a batch's arrays are those that `arch_jax.data` gives.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from arch_jax.graph import Graph
from arch_jax.ops.diffusion.condition import Condition

Batch = Mapping[str, Any]  # arrays, or their shapes


def decoder(batch: Batch) -> tuple:
    """`apply(variables, tokens)` of a language model."""
    return (batch["tokens"],)


def encoder(batch: Batch) -> tuple:
    """`apply(variables, tokens, types, mask)` of an encoder; segment ids serve as a mask, being 0 at padding."""
    mask = batch.get("mask")
    if mask is None and "segment_ids" in batch:
        mask = batch["segment_ids"] > 0
    return batch["tokens"], batch.get("types"), mask


def encoder_decoder(batch: Batch) -> tuple:
    """`apply(variables, source, target, source_mask)` of an encoder-decoder."""
    return batch["source"], batch["target"], batch.get("source_mask")


def image_model(batch: Batch) -> tuple:
    """`apply(variables, images)` of a classifier or an autoencoder of images."""
    return (batch["images"],)


def conditional_image_model(batch: Batch) -> tuple:
    """`apply(variables, images, labels)` of a class-conditional autoencoder."""
    return batch["images"], batch["labels"]


def denoiser(batch: Batch, classes: int | None = None) -> tuple:
    """`apply(variables, x, time, condition)` of a denoiser of points or images; without `time` in the batch, time 0.

    Args:
      batch: with `x` or `images`; `labels` are a condition where the model has classes.
      classes: of the model; None for an unconditional one.
    """
    x = batch["x"] if "x" in batch else batch["images"]
    time = batch["time"] if "time" in batch else jnp.zeros(x.shape[:1])
    return x, time, None if classes is None else Condition(label=batch["labels"])


def noisy_classifier(batch: Batch) -> tuple:
    """`apply(variables, x, time)` of a classifier of noisy images; without `time` in the batch, time 0."""
    return denoiser(batch)[:2]


def vector_model(batch: Batch) -> tuple:
    """`apply(variables, x)` of a model of vectors; of images where the batch has those."""
    return (batch["x"] if "x" in batch else batch["images"],)


def sequence_reader(batch: Batch) -> tuple:
    """`apply(variables, x, segment_ids)` of a regression on sequences of numbers; without ids all is real."""
    return (batch["x"], batch["segment_ids"]) if "segment_ids" in batch else (batch["x"],)


def graph_network(batch: Batch) -> tuple:
    """`apply(variables, graph)` of a graph network."""
    return (Graph(batch["nodes"], batch["senders"], batch["receivers"], batch.get("edges"), batch["sizes"]),)
