"""A model's architecture as a drawing, made from its modules and the data flow between them."""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from arch_jax import registry
from arch_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An SVG image; a notebook shows it.

    Attributes:
      svg: its text.
    """

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Writes the drawing to a file, whole or not at all.

        Raises:
          UsageError: the folder does not exist, `path` is a folder, or its name does not end in ".svg".
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise UsageError(
                f"the folder {str(path.parent)!r} does not exist; expected one that does for {path.name!r}"
            )
        if path.is_dir():
            raise UsageError(f"{str(path)!r} is a folder; expected a file such as {str(path / 'model.svg')!r}")
        if path.suffix.lower() != ".svg":
            raise UsageError(f"{path.name!r} is no name of an SVG; expected one such as {f'{path.stem}.svg'!r}")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.svg)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)  # as a file that `open` makes; a temporary one is the owner's alone
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return path


def draw(model: str | nn.Module, /, *arguments: Any, **changes: Any) -> Drawing:
    """The architecture of a model: layers as boxes and frames, and the data flow between them.

    The flow is read from a trace on shapes alone; nothing is computed, so any size is drawn in seconds. Equal layers
    stand once, with their number.

        arch_jax.draw("gpt2", depth=4).save("gpt2.svg")
        arch_jax.draw(module, tokens)

    Args:
      model: the name of a registered model, or a module of one's own.
      *arguments: for a module, arrays or their shapes (`jax.ShapeDtypeStruct`) as it is called with, a batch first.
      **changes: for a name, fields, as `arch_jax.create` takes them.

    Raises:
      UsageError: unknown model or field, a value of the wrong type; arguments beside a name; changes to
        a module, or no arguments for it.
    """
    if isinstance(model, nn.Module):
        kind = type(model).__name__
        if changes:
            raise UsageError(f"{kind} was given {', '.join(changes)} to change; expected the module as it is drawn")
        if not arguments:
            raise UsageError(
                f"{kind} was given without inputs; expected the arrays that it is called with: draw(module, tokens)"
            )
        variables = jax.eval_shape(model.init, jax.random.key(0), *arguments)
        return _drawn(model, variables, arguments, (), kind, [])
    if arguments:
        raise UsageError(f"{model!r} was given {len(arguments)} arguments; expected none, as a name has its own inputs")
    entry, module = registry.entry(model), registry.create(model, **changes)
    try:
        return of_entry(entry, module)
    except UsageError:
        if not changes:
            raise
        # Another resolution, or fewer positions, than the example inputs have.
        return of_entry(dataclasses.replace(entry, inputs=entry.inputs.resized(module)), module)


def of_entry(entry: registry.Entry, module: nn.Module) -> Drawing:
    """The drawing of a registered model as `module`, on the example inputs of its entry."""
    batch = jax.eval_shape(lambda: entry.inputs.batch(module, 1, jax.random.key(0)))
    paper = entry.paper
    source = f"{paper.title}. {paper.authors}, {paper.year}"
    arguments = entry.arguments(batch)
    return _drawn(module, entry.abstract_variables(module), arguments, entry.inputs.names, entry.name, [source])


def _drawn(
    module: nn.Module, variables: Any, arguments: tuple, names: tuple[str, ...], title: str, lines: list[str]
) -> Drawing:
    # Only here, since they know the layers, which a program that draws nothing need not load.
    from arch_jax.drawing.build import diagram
    from arch_jax.drawing.portraits import magnitude
    from arch_jax.drawing.svg import page

    counts = parameter_counts(variables)
    nodes = diagram(module, variables, arguments, names, counts)
    said = [*lines, f"{magnitude(counts.get('', 0))} parameters"]
    return Drawing(page(nodes, title, [*said, "in each box: the layer, its parameters, the shape of its output"]))


def parameter_counts(variables: Any) -> dict[str, int]:
    """The parameters under each path, such as "stack/layer_0", from those of the whole under ""."""
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables.get("params", {}))[0]:
        keys = [str(getattr(key, "key", key)) for key in path]
        for depth in range(len(keys) + 1):
            inner = "/".join(keys[:depth])
            counts[inner] = counts.get(inner, 0) + registry.count(leaf)
    return counts
