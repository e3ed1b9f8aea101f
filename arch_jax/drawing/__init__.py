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
          UsageError: the folder does not exist, or `path` is a folder.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise UsageError(
                f"the folder {str(path.parent)!r} does not exist; expected one that does for {path.name!r}"
            )
        if path.is_dir():
            raise UsageError(f"{str(path)!r} is a folder; expected a file such as {str(path / 'model.svg')!r}")
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


def draw(model_name: str, /, **changes: Any) -> Drawing:
    """The architecture of a registered model: layers as boxes and frames, and the data flow between them.

    The flow is read from a trace on shapes alone; nothing is computed, so any size is drawn in seconds. Equal layers
    stand once, with their number.

        arch_jax.draw("gpt2", depth=4).save("gpt2.svg")

    Args:
      model_name: a registered model.
      **changes: fields, as `arch_jax.create` takes them.

    Raises:
      UsageError: unknown model or field, or a value of the wrong type.
    """
    entry = registry.entry(model_name)
    module = registry.create(model_name, **changes)
    if changes:
        entry = dataclasses.replace(entry, inputs=entry.inputs.resized(module))
    return _drawn(module, entry)


def _drawn(module: nn.Module, entry: registry.Entry) -> Drawing:
    # Only here, since they know the layers, which a program that draws nothing need not load.
    from arch_jax.drawing.build import Builder
    from arch_jax.drawing.flow import flow
    from arch_jax.drawing.portraits import magnitude
    from arch_jax.drawing.svg import page

    batch = jax.eval_shape(lambda: entry.inputs.batch(module, 1, jax.random.key(0)))
    variables = entry.abstract_variables(module)
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables.get("params", {}))[0]:
        names = [str(getattr(key, "key", key)) for key in path]
        for depth in range(len(names) + 1):
            inner = "/".join(names[:depth])
            counts[inner] = counts.get(inner, 0) + registry.count(leaf)
    outside, calls = flow(module, variables, entry.arguments(batch))
    nodes = Builder(calls, counts).model(outside, entry.inputs.names)
    paper = entry.paper
    return Drawing(
        page(
            nodes,
            entry.name,
            [
                f"{paper.title}. {paper.authors}, {paper.year}",
                f"{magnitude(counts.get('', 0))} parameters",
                "in each box: the layer, its parameters, the shape of its output",
            ],
        )
    )
