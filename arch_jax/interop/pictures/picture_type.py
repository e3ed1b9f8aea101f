"""What an image model type is to us: its configuration in two directions, and a list of tensors for each naming."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

#: The axes of a tensor of theirs in our order: kernels of convolutions are "features channels height width" there.
CONVOLUTION = (2, 3, 1, 0)
LINEAR = (1, 0)


class Row(NamedTuple):
    """One tensor of theirs and the array that it is here.

    Attributes:
      theirs: its name.
      ours: the path of the variable, its collection first.
      axes: of theirs, in the order of ours; none is as they are.
    """

    theirs: str
    ours: str
    axes: tuple[int, ...] | None = None


class PictureType(NamedTuple):
    """How one model type is read and written.

    Attributes:
      module: the class that it becomes.
      read: the fields of transformers' config.json as a module.
      write: a module's settings as fields of config.json.
      rows: naming ("transformers", "torchvision") -> the tensors of a module, in their order.
      architectures: timm's and torchvision's name of an architecture -> the name that it is registered under.
      picture: "height width channels" that a module takes.
    """

    module: type[nn.Module]
    read: Callable[[Mapping[str, Any]], nn.Module]
    write: Callable[[Any], dict[str, Any]]
    rows: Mapping[str, Callable[[Any], list[Row]]]
    architectures: Mapping[str, str]
    picture: Callable[[Any], tuple[int, int, int]] = lambda module: (64, 64, 3)


def convolution(theirs: str, ours: str, bias: bool = False) -> list[Row]:
    """The rows of a convolution."""
    rows = [Row(f"{theirs}.weight", f"params/{ours}/kernel", CONVOLUTION)]
    return [*rows, Row(f"{theirs}.bias", f"params/{ours}/bias")] if bias else rows


def linear(theirs: str, ours: str) -> list[Row]:
    """The rows of a linear layer with bias."""
    return [Row(f"{theirs}.weight", f"params/{ours}/kernel", LINEAR), Row(f"{theirs}.bias", f"params/{ours}/bias")]


def batch_norm(theirs: str, ours: str) -> list[Row]:
    """The rows of a batch norm: scale, bias and moving averages."""
    return [
        Row(f"{theirs}.weight", f"params/{ours}/scale"),
        Row(f"{theirs}.bias", f"params/{ours}/bias"),
        Row(f"{theirs}.running_mean", f"batch_stats/{ours}/mean"),
        Row(f"{theirs}.running_var", f"batch_stats/{ours}/variance"),
    ]
