"""Example inputs of the kinds of model: what a registered name says of what it takes.

From these, counts are made by `jax.eval_shape`, and the contract suite makes its batches. The arrays have the names and
shapes of the batches that `arch_jax.data` gives.
"""

from arch_jax.inputs.base import Batch, Inputs, Rows
from arch_jax.inputs.graphs import GraphInputs, graphs
from arch_jax.inputs.images import ImageInputs, LabelledImageInputs, images, labelled_images
from arch_jax.inputs.noisy import (
    NoisyInputs,
    NoisyLabelledInputs,
    noisy_images,
    noisy_labelled_images,
    noisy_points,
)
from arch_jax.inputs.text import EncodedInputs, PairInputs, TokenInputs, encoded, pairs, tokens
from arch_jax.inputs.vectors import PointInputs, VectorInputs, points, vectors

__all__ = [
    "Batch",
    "EncodedInputs",
    "GraphInputs",
    "ImageInputs",
    "Inputs",
    "LabelledImageInputs",
    "NoisyInputs",
    "NoisyLabelledInputs",
    "PairInputs",
    "PointInputs",
    "Rows",
    "TokenInputs",
    "VectorInputs",
    "encoded",
    "graphs",
    "images",
    "labelled_images",
    "noisy_images",
    "noisy_labelled_images",
    "noisy_points",
    "pairs",
    "points",
    "tokens",
    "vectors",
]
