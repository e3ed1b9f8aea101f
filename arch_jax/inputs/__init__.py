"""Example inputs of the kinds of model: what a registered name says of what it takes.

From these, counts are made by `jax.eval_shape`, and the contract suite makes its batches. The arrays have the names and
shapes of the batches that `arch_jax.data` gives.
"""

from arch_jax.inputs.base import Batch, Inputs, Rows
from arch_jax.inputs.graphs import Graphs, graphs
from arch_jax.inputs.images import Images, LabelledImages, images, labelled_images
from arch_jax.inputs.text import Encoded, Pairs, Tokens, encoded, pairs, tokens
from arch_jax.inputs.vectors import Points, Vectors, points, vectors

__all__ = [
    "Batch",
    "Encoded",
    "Graphs",
    "Images",
    "Inputs",
    "LabelledImages",
    "Pairs",
    "Points",
    "Rows",
    "Tokens",
    "Vectors",
    "encoded",
    "graphs",
    "images",
    "labelled_images",
    "pairs",
    "points",
    "tokens",
    "vectors",
]
