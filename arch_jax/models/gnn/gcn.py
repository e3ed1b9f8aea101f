"""Graph convolutional networks (Kipf & Welling 2017, 1609.02907), for the classes of a graph's nodes.

    Z = softmax(A^ ReLU(A^ X W0) W1),   A^ = D^(-1/2) (A + I) D^(-1/2)                             (equation 9)

with dropout on the input of each layer, and Glorot & Bengio's (2010) initializer for W.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.fields import DType, component
from arch_jax.graph import Graph
from arch_jax.inputs import graphs
from arch_jax.layers.graph.convolution import GraphConvolution
from arch_jax.layers.transformer.feed_forward import activation
from arch_jax.ranges import PartialShare
from arch_jax.registry import Paper, register


@component("gcn", kind="model")
class GCN(nn.Module):
    """Graph convolutions with an activation between them: a graph in, logits of each node's class out.

    Attributes:
      classes: number of classes.
      hidden: widths of the hidden layers.
      dropout: dropout rate of each layer's input.
      bias: whether the layers have biases; the paper's have none.
      activation: between layers.
      dtype: of the computation; sums over edges are at least float32.
      parameter_dtype: of the parameters.
    """

    classes: int
    hidden: tuple[int, ...] = (16,)
    dropout: PartialShare = 0.5
    bias: bool = False
    activation: str = "relu"
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise UsageError(f"classes is {self.classes}; expected at least 2")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout}; expected at least 0 and less than 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, graph: Graph, train: bool = False) -> Float[Array, "nodes classes"]:
        graph = jax.tree.map(jnp.asarray, graph)  # a graph from the data is made of numpy's arrays
        x = graph.nodes
        widths = (*self.hidden, self.classes)
        for i, width in enumerate(widths):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            layer = GraphConvolution(width, self.bias, self.dtype, self.parameter_dtype, name=f"convolution_{i}")
            x = layer(x, graph)
            if i < len(widths) - 1:
                x = activation(self.activation)(x)
        return x


@register(
    "gcn",
    family="gnn",
    objective="nodes",
    paper=Paper(
        "Semi-Supervised Classification with Graph Convolutional Networks", "Kipf & Welling", 2017, "1609.02907"
    ),
    inputs=graphs(nodes=2708, edges=10_556, features=1433),
    shrink={"classes": 3, "hidden": (4,), "dropout": 0.0},
    reference="torch-geometric GCN: logits within 1e-5",
    departures=("The model gives logits; the softmax of equation 9 is part of the loss.",),
    difference=1.5e-7,
    reproduces="Cora 81.5 % (gcn_cora), Citeseer 70.3 % (gcn_citeseer)",
)
def gcn() -> GCN:
    """The paper's two layers for Cora: 1433 words, 16 hidden units, 7 classes."""
    return GCN(classes=7)
