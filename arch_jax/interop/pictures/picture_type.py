"""What an image model type is to us: its configuration in two directions, and a list of tensors for each naming."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

#: The axes of a tensor of theirs in our order: kernels of convolutions are "features channels height width" there.
CONVOLUTION = (2, 3, 1, 0)
LINEAR = (1, 0)


class Row(NamedTuple):
    """One tensor of theirs, or one of each layer, and what it is here.

    Attributes:
      theirs: its name; {} stands for the layer's number, where there are layers.
      ours: paths of the variables, their collection first; several lie side by side on the last axis.
      axes: of theirs, in the order of ours; none is as they are.
      ones: how many leading axes of 1 theirs has that ours lacks.
      after: how many trailing ones.
      layers: how many there are on the leading axis of ours; none for what is no stack.
      patch: of a convolution that is a matrix here, the pixels on a side of its kernel.
    """

    theirs: str
    ours: tuple[str, ...]
    axes: tuple[int, ...] | None = None
    ones: int = 0
    after: int = 0
    layers: int | None = None
    patch: int | None = None


class Released(NamedTuple):
    """A network as a library released it under a name of its own.

    Attributes:
      ours: the name that the architecture is registered under.
      changes: fields that the library has otherwise, such as `norm.epsilon`.
    """

    ours: str
    changes: Mapping[str, Any] = {}


class PictureType(NamedTuple):
    """How one model type is read and written.

    Attributes:
      module: the class that it becomes.
      read: the fields of transformers' config.json as a module.
      write: a module's settings as fields of config.json.
      rows: naming ("transformers", "torchvision", "timm" ...) -> the tensors of a module, in their order.
      architectures: name of an architecture in another library -> the namings that its tensors may have there, the
        likeliest first, and what the network is in each.
      picture: "height width channels" that a module takes.
      plain: a module with the sizes that follow from others written out, so that two can be compared.
    """

    module: type[nn.Module]
    read: Callable[[Mapping[str, Any]], nn.Module]
    write: Callable[[Any], dict[str, Any]]
    rows: Mapping[str, Callable[[Any], list[Row]]]
    architectures: Mapping[str, Mapping[str, Released]]
    picture: Callable[[Any], tuple[int, int, int]] = lambda module: (64, 64, 3)
    plain: Callable[[Any], nn.Module] = lambda module: module


def convolution(theirs: str, ours: str, bias: bool = False) -> list[Row]:
    """The rows of a convolution."""
    rows = [Row(f"{theirs}.weight", (f"params/{ours}/kernel",), CONVOLUTION)]
    return [*rows, Row(f"{theirs}.bias", (f"params/{ours}/bias",))] if bias else rows


def linear(theirs: str, *ours: str, bias: bool = True, layers: int | None = None) -> list[Row]:
    """The rows of a linear layer; several of ours are side by side in theirs."""
    kernel = Row(f"{theirs}.weight", tuple(f"params/{path}/kernel" for path in ours), LINEAR, layers=layers)
    return [kernel, Row(f"{theirs}.bias", tuple(f"params/{path}/bias" for path in ours), layers=layers)][: 1 + bias]


def layer_norm(theirs: str, ours: str, layers: int | None = None) -> list[Row]:
    """The rows of a layer norm."""
    names = (("weight", "scale"), ("bias", "bias"))
    return [Row(f"{theirs}.{name}", (f"params/{ours}/{our}",), layers=layers) for name, our in names]


def batch_norm(theirs: str, ours: str) -> list[Row]:
    """The rows of a batch norm: scale, bias and moving averages."""
    return [
        Row(f"{theirs}.weight", (f"params/{ours}/scale",)),
        Row(f"{theirs}.bias", (f"params/{ours}/bias",)),
        Row(f"{theirs}.running_mean", (f"batch_stats/{ours}/mean",)),
        Row(f"{theirs}.running_var", (f"batch_stats/{ours}/variance",)),
    ]
