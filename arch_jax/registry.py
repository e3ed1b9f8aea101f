"""The registry: name -> module, paper, published parameter count, example inputs, objective, reference.

A named variant is a function that returns an unbound Linen module:

    @register("gpt2", family="transformer", objective="next_token", paper=Paper(...), parameters=124_439_808,
              inputs=tokens(1024), reference="transformers GPT2LMHeadModel, logits within 1e-5")
    def gpt2() -> Decoder:
        return Decoder(vocabulary=50_257, depth=12, width=768, ...)

Registering a model is all it takes for `arch-jax list`, `describe` and the contract suite to find it.
"""

import dataclasses
import difflib
import functools
import pkgutil
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from arch_jax import fields
from arch_jax.discovery import import_package
from arch_jax.errors import UsageError, unknown
from arch_jax.inputs import Inputs
from arch_jax.ops.tracing import shapes_alone


@dataclasses.dataclass(frozen=True)
class Paper:
    """The publication of an architecture.

    Attributes:
      title: as printed.
      authors: the first author and "et al.", or all of up to three.
      year: of the first public version.
      arxiv: identifier such as "1706.03762"; None where there is none.
      url: where it can be read, if not on arXiv.
    """

    title: str
    authors: str
    year: int
    arxiv: str | None = None
    url: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registered name and every claim about it.

    Attributes:
      name: as `create` and the command line take it.
      family: the folder of `arch_jax/models` that it stands in, or a name of one's own elsewhere.
      build: returns the module at its published size.
      objective: the name of its training objective.
      paper: the publication.
      inputs: example inputs.
      parameters: the published parameter count, or None where none was published.
      architecture: names that share one are the same architecture at other sizes; it is checked for real once.
      shrink: dotted overrides that make it tiny for those checks.
      reference: reference implementation for parity tests, and how closely the model equals it.
      difference: the largest difference from the reference that was seen for random tiny weights, as a fraction of the
        largest output; None without such a reference.
      departures: what differs from the paper, one sentence each, with the reason; empty where nothing is known to.
      reproduces: the published result that an experiment here reproduces.
      uncounted: patterns of parameters that the published count leaves out, with the reason.
      no_gradient: patterns of parameters that have no gradient by mathematics, with the reason.
      couples_examples: the paper couples the examples of a batch, so batch permutation is not asked of it.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    objective: str
    paper: Paper
    inputs: Inputs
    parameters: int | None = None
    architecture: str = ""
    shrink: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reference: str = ""
    difference: float | None = None
    departures: tuple[str, ...] = ()
    reproduces: str = ""
    uncounted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    no_gradient: Mapping[str, str] = dataclasses.field(default_factory=dict)
    couples_examples: bool = False

    def tiny(self) -> nn.Module:
        """The same architecture, small enough to be run for real in a test."""
        return fields.override(self.build(), self.shrink)

    def abstract_variables(self, module: nn.Module | None = None) -> Any:
        """Shapes and dtypes of all variables, without memory or time: `jax.eval_shape` of `init`."""
        module = self.build() if module is None else module
        key = jax.eval_shape(lambda: jax.random.key(0))
        batch = jax.eval_shape(lambda k: self.inputs.batch(module, 1, k), key)
        with shapes_alone():
            return jax.eval_shape(lambda k, b: module.init(k, *self.arguments(b)), key, batch)

    def arguments(self, batch: Mapping[str, Any]) -> tuple:
        """The arguments of the model itself from an example batch."""
        return self.inputs.arguments(batch)

    def count(self) -> int:
        """The number of trainable parameters at the published size, less those that the publication does not count."""
        return self._count

    @functools.cached_property
    def _count(self) -> int:  # of a deep model that is not scanned it takes seconds
        params = self.abstract_variables()["params"]
        if not self.uncounted:
            return count(params)
        flat = jax.tree_util.tree_flatten_with_path(params)[0]
        paths = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
        left_out = lambda path: any(re.search(pattern, path) for pattern in self.uncounted)
        return sum(count(leaf) for path, leaf in paths.items() if not left_out(path))


def count(tree: Any) -> int:
    """The number of array elements in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(tree))


_ENTRIES: dict[str, Entry] = {}


def register(name: str, **facts: Any) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Decorator: registers a function that returns a module under `name`; keywords are those of `Entry`.

    Raises:
      UsageError: if the name is taken, or the family is not that of the model's folder or is a known one misspelt.
    """
    family = facts.get("family")
    if not isinstance(family, str) or not family.isidentifier():
        raise UsageError(f"family is {family!r}; expected a name, such as one of {', '.join(map(repr, families()))}")
    if family not in families() and difflib.get_close_matches(family, families(), n=1, cutoff=0.75):
        raise unknown("family", family, families())

    def decorate(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        _check_folder(family, build.__module__)
        taken = _ENTRIES.get(name)
        if taken is not None and taken.build.__module__ != build.__module__:
            raise UsageError(f"the model name {name!r} is already registered by {taken.build.__module__}")
        _ENTRIES[name] = Entry(name=name, build=build, **({"architecture": name} | facts))
        return build

    return decorate


def _check_folder(family: str, module: str) -> None:
    """A model of this package belongs to the family of its folder; one from elsewhere may found a family of its own."""
    *parents, folder = module.split(".")[:3]
    if parents == ["arch_jax", "models"] and family != folder:
        raise UsageError(f"{module} registers a model of family {family!r}; expected that of its folder, {folder!r}")


def families() -> list[str]:
    """The families of models: the folders of `arch_jax/models`, and those of registered models from elsewhere."""
    folders = {found.name for found in pkgutil.iter_modules([str(Path(__file__).parent / "models")]) if found.ispkg}
    return sorted(folders | {entry.family for entry in _ENTRIES.values()})


def models() -> Mapping[str, Entry]:
    """Every registered model: name -> `Entry`, file by file. Imports the families' files on first use."""
    import_models()
    # Not in the order in which the files happened to be imported.
    return types.MappingProxyType(dict(sorted(_ENTRIES.items(), key=lambda item: item[1].build.__module__)))


def import_models() -> None:
    """Imports every file under `arch_jax/models`, which registers what it holds."""
    import_package("arch_jax.models")


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
      UsageError: unknown model, with the nearest names.
    """
    known = models()
    if name not in known:
        raise unknown("model", name, known)
    return known[name]


def create(name: str, **changes: Any) -> nn.Module:
    """The module registered under `name`, with fields replaced.

    Args:
      name: e.g. "gpt2".
      **changes: fields by name; nested ones as a dotted key, `**{"mixer.heads": 4}`.

    Raises:
      UsageError: unknown model or field (nearest names), or a value of the wrong type.
    """
    return fields.override(entry(name).build(), changes)
