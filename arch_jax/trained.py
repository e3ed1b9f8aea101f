"""Trained parts by where they come from: frozen ones that a run uses, and the weights that a run starts from.

Both only name a source. `train` opens it before the first step, and writes the hash of what it found into
`config.json`, so that a run is never continued or evaluated with another.
"""

import dataclasses
import re
from typing import Annotated, Any

import jax

from arch_jax.errors import UsageError
from arch_jax.fields import Kind, component
from arch_jax.ranges import Signed


@component("frozen", kind="frozen", text="source")
@dataclasses.dataclass(frozen=True)
class Frozen:
    """A trained part that an objective, a sampler, a measure or a figure uses and no step changes.

    It has no gradient, no optimizer and no moving average, is an argument of the compiled programs, and is not in the
    run's checkpoints. In `--set` its source alone will do: `--set objective.teacher=runs/gpt-1`.

    Attributes:
      source: a run's folder, a checkpoint's folder (`load_pretrained`), or the name of an experiment, which is trained
        on demand, once, under the user's cache.
      model: filled in from the source.
      sha256: of its model and variables, filled in from the source; if it is given, the source must have it.
      low: value of the darkest pixel of the images that it was trained on, filled in from the run's data; None where it
        was trained on something else. A checkpoint does not know it, and there it can be given.
      high: that of the brightest.
      shape: of one of these images, "height width channels", filled in as well.
    """

    source: str
    model: Annotated[Any, Kind("model")] | None = None
    sha256: str | None = None
    low: Signed | None = None
    high: Signed | None = None
    shape: tuple[int, ...] | None = None

    def apply(self, variables: Any, *arguments: Any, **options: Any) -> Any:
        """`model.apply` with the part's own variables.

        Args:
          variables: of the run, as `loss`, `evaluate`, samplers, measures and figures get them.
          *arguments, **options: of the model.

        Raises:
          UsageError: the part has not been opened, which `train` and `open_run` do.
        """
        held = variables.get("frozen", {})
        if self.model is None or self.sha256 not in held:
            raise UsageError(
                f"the frozen part {self.source!r} has not been opened; expected variables of a run that train or "
                "open_run made"
            )
        return self.model.apply(jax.lax.stop_gradient(held[self.sha256]), *arguments, **options)


@component("start", kind="start", text="source")
@dataclasses.dataclass(frozen=True)
class Start:
    """Weights that a run starts from, in place of freshly initialised ones.

    Leaves are matched by path ("params/stack/block_0/mixer/query/kernel") and must have the same shape; the optimizer
    begins afresh.

    Attributes:
      source: a run's folder, a checkpoint's folder (`load_pretrained`), or the name of an experiment, which is trained
        on demand.
      mapping: pairs (regular expression, replacement) applied in order to each path of the source, for parts that have
        another name here: (("^params/", "params/encoder/"),).
      unused: regular expressions of the source's paths, after the mapping, that may be left out.
      fresh: regular expressions of the run's paths that are freshly initialised, such as a new head.
      sha256: of what the source holds; filled in when the run begins, and checked if it is given.
    """

    source: str
    mapping: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    sha256: str | None = None

    def __post_init__(self) -> None:
        patterns = [*(one for one, _ in self.mapping), *self.unused, *self.fresh]
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as problem:
                raise UsageError(f"{pattern!r} of the start is no regular expression: {problem}") from None

    def mapped(self, path: str) -> str:
        """The path of a leaf of the source in the run."""
        for pattern, replacement in self.mapping:
            try:
                path = re.sub(pattern, replacement, path)
            except (re.error, IndexError) as problem:
                raise UsageError(f"start.mapping replaces {pattern!r} by {replacement!r}: {problem}") from None
        return path

    def fitted(self, source: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
        """The leaves of the source under the run's paths.

        Args:
          source: path -> leaf.
          target: path -> leaf, or its shape, of the run's fresh variables.

        Raises:
          UsageError: a leaf of the source that the run has no place for, or of another shape, or one of the run that
            the source does not have, unless `unused` and `fresh` allow it; two leaves for one place.
        """
        found: dict[str, Any] = {}
        for path, leaf in source.items():
            place = self.mapped(path)
            if any(re.search(pattern, place) for pattern in self.fresh):
                continue
            if place not in target:
                if any(re.search(pattern, place) for pattern in self.unused):
                    continue
                raise UsageError(
                    f"start: {self.source!r} has {place!r}, for which the run has no place; map it with start.mapping, "
                    "or leave it out with start.unused"
                )
            if place in found:
                raise UsageError(f"start: the mapping puts two leaves of {self.source!r} at {place!r}; expected one")
            if leaf.shape != target[place].shape:
                raise UsageError(
                    f"start: {place!r} of {self.source!r} has shape {tuple(leaf.shape)}, and the run's has "
                    f"{tuple(target[place].shape)}; expected the same, or a pattern of it in start.fresh"
                )
            found[place] = leaf
        for path in target:
            if path not in found and not any(re.search(pattern, path) for pattern in self.fresh):
                raise UsageError(
                    f"start: {self.source!r} has no {path!r}; map it with start.mapping, or initialise it afresh with "
                    "start.fresh"
                )
        return found
