"""What a model type of transformers is to us: two directions of its configuration, and a table of tensors' names."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from arch_jax.errors import UsageError

#: Tensors by name: arrays, or whatever has a `shape` and becomes an array when asked.
Tensors = Mapping[str, Any]


class Row(NamedTuple):
    """One tensor of theirs and what it is here.

    Attributes:
      theirs: its name; {} stands for the layer's number.
      ours: paths under the parameters (of a layer); several lie side by side on the last axis.
      transposed: whether theirs is the transpose of ours.
      axes: where theirs has more axes, of 1.
      block: which one it belongs to of the residual blocks that make a layer of theirs.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    axes: tuple[int, ...] = ()
    block: int = 0


class Layers(NamedTuple):
    """The tensors of a stack of equal layers.

    Attributes:
      ours: where the stack lies under the parameters.
      depth: how many layers it has.
      pattern: what finds the number of a layer in a name of theirs.
      rows: of one layer.
      blocks: how many residual blocks of ours are one layer of theirs.
    """

    ours: str
    depth: int
    pattern: re.Pattern
    rows: tuple[Row, ...]
    blocks: int = 1


class Names(NamedTuple):
    """The tensors of a model. A row applies where the module has what it names: biases, an output layer of its own.

    Attributes:
      prefix: in front of most names; a checkpoint of the model without its head lacks it.
      embedding: the row of the token embedding, whose shape is checked before all others.
      rows: outside the layers, that of the embedding among them.
      stacks: the layers.
      buffers: what names tensors that are no parameters.
      copies: tensors that repeat another one, if they are there: its name.
    """

    prefix: str
    embedding: str
    rows: tuple[Row, ...]
    stacks: tuple[Layers, ...]
    buffers: re.Pattern
    copies: Mapping[str, str]


class ModelType(NamedTuple):
    """How one of transformers' model types is read and written.

    Attributes:
      module: the class that it becomes.
      read: the fields of config.json as a module.
      write: a module's settings (and the module) as fields of config.json.
      names: a module's tensors.
      adjusted: the module for the tensors that a checkpoint turns out to have: heads, an output layer of its own.
      renamed: a tensor's present name, where older checkpoints have another.
      told_by_tensors: settings of the module that `adjusted` finds, and config.json does not say.
    """

    module: type[nn.Module]
    read: Callable[[Mapping[str, Any]], nn.Module]
    write: Callable[[Mapping[str, Any], Any], dict[str, Any]]
    names: Callable[[Any], Names]
    adjusted: Callable[[Any, Tensors], nn.Module] = lambda module, tensors: module
    renamed: Callable[[str], str] = lambda name: name
    told_by_tensors: tuple[str, ...] = ()


def dense(theirs: str, *ours: str, transposed: bool = True) -> list[Row]:
    """The rows of a linear layer, with its bias where there is one."""
    kernel = Row(f"{theirs}.weight", tuple(f"{path}/kernel" for path in ours), transposed)
    return [kernel, Row(f"{theirs}.bias", tuple(f"{path}/bias" for path in ours))]


def norm(theirs: str, ours: str) -> list[Row]:
    """The rows of a norm, with its bias where there is one."""
    return [Row(f"{theirs}.weight", (f"{ours}/scale",)), Row(f"{theirs}.bias", (f"{ours}/bias",))]


def divides(part: str, parts: int, whole: str, size: int) -> None:
    """Refuses sizes that can't be shared out equally.

    Raises:
      UsageError: `parts` does not divide `size`.
    """
    if size % parts:
        raise UsageError(f"{part} is {parts}, which does not divide {whole} ({size}); expected a divisor of it")


def their_activation(settings: Mapping[str, Any], tanh_gelu: str) -> str:
    """transformers' name of a feed-forward's activation; `tanh_gelu` is what this model type calls that one."""
    ours = settings["feed_forward"].get("activation", "silu")
    return tanh_gelu if ours == "gelu_tanh" else ours
