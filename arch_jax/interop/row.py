"""Rows: the name and the layout of one tensor in another library, and the variables that it becomes here.

    *linear_rows("transformer.h.{}.mlp.c_fc", "feed_forward/up")    # a weight and a bias, of each layer
    Row("transformer.wte.weight", ("embedding/embedding",))

The same rows serve both directions. A row applies where the module has what it names: one table covers a model with
biases and without, tied and untied.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

#: Sizes of a tensor's axes.
Shape = tuple[int, ...]
#: Tensors by name: arrays, or whatever has a `shape` and becomes an array when asked.
Tensors = Mapping[str, Any]

#: The axes of a PyTorch kernel in our order: it has "features channels height width", or "features channels".
CONVOLUTION = (2, 3, 1, 0)
LINEAR = (1, 0)

#: The number of batches that a PyTorch batch norm has counted: nothing is computed from it.
BATCH_COUNTS = re.compile(r".*\.num_batches_tracked")
_NOTHING = re.compile(r"(?!)")


class FixedTensor(NamedTuple):
    """A tensor of theirs that is computed here: no variable of ours.

    Attributes:
      shape: of their tensor.
      make: computes it; called only once the shape of theirs is known to be right.
    """

    shape: Shape
    make: Callable[[], np.ndarray]


class Row(NamedTuple):
    """One tensor of theirs, or one of each layer, and what it is here.

    Attributes:
      theirs: its name; {} stands for the layer's number.
      ours: paths of our variables (in a layer); several lie side by side on the last axis.
      axes: the axes of theirs in the order of ours, without those in `ones`; None for the same order.
      ones: axes of size 1 that theirs has and ours lacks, in ascending order.
      patch: for a convolution that is a matrix product here, the height and width of its kernel.
      window: whether theirs may end in two axes of 1, those of a 1 x 1 convolution.
      fixed: a tensor that is computed here; then `ours` is empty.
      collection: of our variables.
      block: which of the residual blocks that make a layer of theirs it belongs to.
    """

    theirs: str
    ours: tuple[str, ...]
    axes: tuple[int, ...] | None = None
    ones: tuple[int, ...] = ()
    patch: int | None = None
    window: bool = False
    fixed: FixedTensor | None = None
    collection: str = "params"
    block: int = 0


class LayerRows(NamedTuple):
    """The tensors of a stack of equal layers.

    Attributes:
      ours: path of the stack.
      depth: number of layers.
      rows: of one layer; all names are the same up to the layer's number.
      blocks: how many residual blocks of ours are one layer of theirs.
      pattern: after how many layers of theirs the parts of ours repeat: so many, in turn, are scanned together.
    """

    ours: str
    depth: int
    rows: tuple[Row, ...]
    blocks: int = 1
    pattern: int = 1

    def scanned(self, module: Any) -> bool:
        """True if `module` keeps the layers' parameters on a leading axis."""
        return module.scan and self.depth % self.pattern == 0

    def place(self, layer: int, block: int, scanned: bool) -> str:
        """Our path of a block of a layer of theirs."""
        if scanned:
            return f"{self.ours}/layers/block_{layer % self.pattern * self.blocks + block}/"
        return f"{self.ours}/layer_{layer * self.blocks + block}/"

    @property
    def before(self) -> str:
        """The part of a name before the layer's number."""
        return self.rows[0].theirs.partition("{}")[0]


class Naming(NamedTuple):
    """The tensors of a model as a library names them.

    Attributes:
      rows: outside the stacks.
      stacks: of layers.
      prefix: of most names; a checkpoint of the model without its head lacks it.
      sizes: tensors that are compared with these shapes before all others: they bound what the other shapes follow
        from.
      buffers: matches names of tensors that nothing is computed from.
      copies: tensors that may repeat another one -> that one.
    """

    rows: tuple[Row, ...]
    stacks: tuple[LayerRows, ...] = ()
    prefix: str = ""
    sizes: Mapping[str, Shape] = {}
    buffers: re.Pattern = _NOTHING
    copies: Mapping[str, str] = {}

    def spellings(self, name: str) -> tuple[str, ...]:
        """A full name, and the name without the prefix."""
        return (name, name.removeprefix(self.prefix)) if self.prefix and name.startswith(self.prefix) else (name,)

    def twins(self, name: str, apart: Collection[str] = ()) -> tuple[str, ...]:
        """Other names under which a tensor may be stored: those that repeat it and are no tensors of their own.

        Args:
          name: of the tensor.
          apart: names of tensors of their own.
        """
        copies = [copy for copy, of in self.copies.items() if of == name and copy not in apart]
        return tuple(other for copy in copies for other in self.spellings(copy))

    def layer(self, stack: LayerRows) -> re.Pattern:
        """Finds a layer's number at the start of a name, with or without the prefix."""
        start = stack.before.removeprefix(self.prefix)
        prefix = f"(?:{re.escape(self.prefix)})?" if stack.before.startswith(self.prefix) else ""
        return re.compile(rf"{prefix}{re.escape(start)}([0-9]{{1,9}})\.")

    def shared(self, names: Iterable[str]) -> int:
        """The number of tensors outside the stacks and of the first layers whose names are among `names`."""
        rows = [*self.rows, *(row for stack in self.stacks for row in stack.rows)]
        return sum(any(name in names for name in self.spellings(row.theirs.format(0))) for row in rows)


def linear_rows(theirs: str, *ours: str, axes: tuple[int, ...] | None = LINEAR) -> list[Row]:
    """The rows of a linear layer; several of ours lie side by side in theirs."""
    kernel = Row(f"{theirs}.weight", tuple(f"{path}/kernel" for path in ours), axes)
    return [kernel, Row(f"{theirs}.bias", tuple(f"{path}/bias" for path in ours))]


def pointwise_rows(theirs: str, ours: str) -> list[Row]:
    """The rows of a linear layer that is a 1 x 1 convolution there."""
    kernel, bias = linear_rows(theirs, ours)
    return [kernel._replace(ones=(2, 3)), bias]


def convolution_rows(theirs: str, ours: str) -> list[Row]:
    """The rows of a convolution."""
    return linear_rows(theirs, ours, axes=CONVOLUTION)


def patch_rows(theirs: str, ours: str, size: int) -> list[Row]:
    """The rows of a convolution whose stride is its size, which is a matrix product here."""
    kernel, bias = convolution_rows(theirs, ours)
    return [kernel._replace(patch=size), bias]


def norm_rows(theirs: str, ours: str) -> list[Row]:
    """The rows of a norm over features or groups: scale and bias."""
    return [Row(f"{theirs}.weight", (f"{ours}/scale",)), Row(f"{theirs}.bias", (f"{ours}/bias",))]


def batch_norm_rows(theirs: str, ours: str) -> list[Row]:
    """The rows of a batch norm: scale, bias and moving averages."""
    return [
        *norm_rows(theirs, ours),
        Row(f"{theirs}.running_mean", (f"{ours}/mean",), collection="batch_stats"),
        Row(f"{theirs}.running_var", (f"{ours}/variance",), collection="batch_stats"),
    ]


def normed_convolution_rows(convolved: str, normed: str, ours: str) -> list[Row]:
    """The rows of a convolution and the batch norm behind it."""
    return [*convolution_rows(convolved, f"{ours}/convolution"), *batch_norm_rows(normed, f"{ours}/norm")]


def blocks_of(counts: Iterable[int]) -> Iterator[tuple[int, int, str]]:
    """Stage, place in the stage, and our name of every block of a network with `counts` blocks a stage."""
    for stage, count in enumerate(counts):
        for place in range(count):
            yield stage, place, f"stage_{stage}_block_{place}"
