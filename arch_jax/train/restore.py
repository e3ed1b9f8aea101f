"""A trained run, opened to be evaluated or sampled from."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.errors
import jax

from arch_jax import fields
from arch_jax.console import console
from arch_jax.data.base import Corpus, Tokenized, load_corpus
from arch_jax.data.images.relabelled import Relabelled
from arch_jax.discovery import import_components
from arch_jax.errors import RunError, UsageError, nearest
from arch_jax.experiment import Experiment, SamplerField, import_file
from arch_jax.interop.safetensors import folder_of
from arch_jax.sampling.base import check_count
from arch_jax.scalars import whole
from arch_jax.train import own_data
from arch_jax.train.checks import evaluation_program
from arch_jax.train.given import open_parts, restored
from arch_jax.train.loop import evaluate
from arch_jax.train.workdir import other_data, read_config


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
      path: its folder.
      experiment: the experiment.
      step: of the checkpoint that was opened.
      variables: of the model, as evaluated (the moving average if there is one).
      facts: of the data it was trained on.
    """

    path: Path
    experiment: Experiment
    step: int
    variables: Any
    facts: dict[str, Any]

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """Validation metrics over the whole validation data.

        Args:
          data: other data to evaluate on, such as `elsewhere` gives; its tokens are those that the model was trained
            with. None is the run's own.

        Raises:
          UsageError: the run's own data is no longer what it was trained on, or the model can't take the other.
        """
        if data is not None:
            tokenizer = self._carried().tokenizer if isinstance(data, Tokenized) else None
            corpus = load_corpus(data, console.tell, tokenizer)
            names = self.facts.get("class_names")
            if names and getattr(corpus, "class_names", None) not in (None, tuple(names)):
                corpus = Relabelled(corpus, names)
            self.experiment.task.check(corpus)  # nothing is drawn or measured there
            self._check_shapes(corpus)
            return evaluate(evaluation_program(self.experiment.task), self.variables, corpus)
        return evaluate(evaluation_program(self.experiment.task), self.variables, self.data)

    def _check_shapes(self, corpus: Any) -> None:
        """Refuses data of shapes that the trained parameters can't take, such as images with other channels."""
        batch = {name: jax.ShapeDtypeStruct(*facts) for name, facts in corpus.shapes.items()}
        try:
            jax.eval_shape(self.experiment.task.evaluate, self.variables, batch)
        except flax.errors.ScopeParamShapeError as problem:
            trained = read_config(self.path)["batch"]
            theirs = {name: facts[0][1:] for name, facts in corpus.shapes.items()}
            ours = {name: tuple(facts["shape"][1:]) for name, facts in trained.items()}
            name = next((name for name in theirs if theirs[name] != ours.get(name)), next(iter(theirs)))
            raise UsageError(
                f"the run's model can't take {name} of shape {theirs[name]}; it was trained on {ours.get(name)}"
            ) from problem

    @functools.cached_property
    def data(self) -> Any:
        """The run's own data.

        Raises:
          UsageError: it can't be read, or is no longer what the run was trained on.
        """
        corpus, _ = own_data.find(self.experiment.data, self.path, read_config(self.path), console.tell)
        if corpus.facts.get("sha256") != self.facts.get("sha256"):
            raise other_data(self.path, self.experiment.data, self.facts, corpus.facts)
        return corpus

    def elsewhere(self, source: str, changes: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """The run's data from another source, or other data altogether.

        Args:
          source: a value for the field `source` of the run's data; or the name of a kind of data, or JSON of one,
            such as {"module": "text", "source": "text:PATH"}.
          changes: other fields of the data, as `data.validation`.

        Raises:
          UsageError: no such source or data, or a field that is not one of the data's.
        """
        own = self.experiment.data
        for path in changes:
            if not path.startswith("data."):
                raise UsageError(f"--set {path} is not of the data; beside --on, expected such as data.batch=16")
        inner = {path.removeprefix("data."): value for path, value in changes.items()}
        kinds = fields.components("data")
        if source.lstrip().startswith("{") or source in kinds:
            try:
                given = {"module": source} if source in kinds else json.loads(source)
            except ValueError as problem:
                raise UsageError(
                    f"--on {source!r} is no JSON ({problem}); expected a source, or data as JSON"
                ) from None
            return fields.override(fields.from_json(given, kind="data"), inner, "data.")
        if "source" not in {field.name for field in fields.settings(own)}:
            name = fields.to_json(own)["module"]
            raise UsageError(
                f"the run's data {name!r} comes from no source that could be another; expected the name of a kind of "
                f"data, or JSON of one{nearest(source, kinds)}"
            )
        return fields.override(own, {"source": source} | inner, "data.")

    def sample(
        self,
        seed: int = 0,
        count: int = 1,
        settings: Mapping[str, Any] = MappingProxyType({}),
        sampler: Any = None,
    ) -> dict[str, Any]:
        """Samples by the run's sampler, or by another one.

        Args:
          seed: of everything random.
          count: how many.
          settings: other settings of the sampler, such as {"temperature": 0.5}.
          sampler: another sampler, or its name or JSON, with its own defaults; None is the run's.

        Returns:
          Name -> text, array or matplotlib figure.

        Raises:
          UsageError: a setting that the sampler does not have or that is out of range; the data is not at hand where
            the sampler reads it.
        """
        task, own = self.experiment.task, self.experiment.used_sampler
        sampler = sampler_with(own if sampler is None else _sampler(sampler), settings)
        count = check_count(count)
        seed = seed_of(seed)
        sampler, held = open_parts(sampler, "sampler.")
        frozen = {**self.variables.get("frozen", {}), **jax.tree.map(jax.numpy.asarray, held)}
        variables = {**self.variables, **({"frozen": frozen} if frozen else {})}
        data = self.data if sampler.uses_data else self._carried()
        sampler.check(task, data)
        return sampler(task, variables, data, jax.random.key(seed), count)

    def _carried(self) -> Any:
        """The part of the data that is known without opening it: the component's settings, and the tokenizer."""
        from arch_jax.data.text.tokenizers import tokenizer_from_json

        carried = Corpus()
        for field in fields.settings(self.experiment.data):
            if hasattr(Corpus, field.name) and field.name != "tokenizer":
                setattr(carried, field.name, getattr(self.experiment.data, field.name))
        file = self.path / "tokenizer.json"
        if "tokenizer" not in self.facts and not file.exists():  # images, points and graphs have none
            return carried
        try:
            carried.tokenizer = tokenizer_from_json(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise RunError(f"{file} is missing or damaged: {' '.join(str(problem).split())}") from None
        return carried


def seed_of(seed: Any) -> int:
    """The seed of a draw.

    Raises:
      UsageError: no integer, or one out of range.
    """
    expected = f"0 to {2**32 - 1}"
    seed = whole("seed", seed, f"an integer from {expected}")
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed is {seed}; expected {expected}")
    return seed


def _sampler(given: Any) -> Any:
    """A sampler, or the one that a name or JSON stands for."""
    import_components()
    return fields.coerce(SamplerField, given, "sampler")


def sampler_with(sampler: Any, settings: Mapping[str, Any]) -> Any:
    """A sampler with other settings.

    Raises:
      UsageError: a setting that it does not have (nearest names), or that is out of range.
    """
    valid = [field.name for field in fields.settings(sampler)]
    for name in settings:
        if name.partition(".")[0] not in valid:
            kind = fields.to_json(sampler)["module"]
            raise UsageError(
                f"{name!r} is not a setting of this run's sampler {kind!r}"
                + (nearest(name, valid) if valid else ", which has none; expected --count and --seed only")
            )
    return fields.override(sampler, settings, "sampler.")


def open_run(
    path: Path | str,
    imports: Sequence[str] = (),
    *,
    best: bool = False,
    moved: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    """Opens a run's newest whole checkpoint.

    Args:
      path: the run's folder.
      imports: Python files to run first, for parts of the model that are defined in them.
      best: the checkpoint with the lowest validation loss instead.
      moved: sources of the run's data and trained parts that have another name now, such as
        {"data.source": "text:PATH"}; their content must be the same.

    Raises:
      UsageError: there is no run, it uses parts that are not known, or the content of a source is another.
      RunError: there is no whole checkpoint.
    """
    for file in imports:
        if not Path(file).is_file():
            raise UsageError(f"--import {file!r} does not exist; expected a Python file")
        import_file(Path(file))
    path = folder_of(path)
    found = restored(path, best=best, moved=moved)
    variables = found.variables | ({"frozen": jax.tree.map(jax.numpy.asarray, found.held)} if found.held else {})
    run = Run(path, found.experiment, found.step, variables, found.facts)
    if "data.source" in moved:
        run.data  # noqa: B018 -- compares its content, also where nothing else will read it
    return run
