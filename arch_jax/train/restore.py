"""A trained run, opened to be evaluated or sampled from."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from arch_jax import fields
from arch_jax.data.base import Tokenized
from arch_jax.errors import ArchJaxError, RunError, UsageError, nearest
from arch_jax.experiment import Experiment, import_components, import_file
from arch_jax.train.checkpointing.checkpoint import Checkpoints
from arch_jax.train.loop import evaluate
from arch_jax.train.report import tell
from arch_jax.train.state import initial_state
from arch_jax.train.workdir import read_config


@dataclasses.dataclass(frozen=True)
class _Carried:
    """The part of the data that a run carries with it: enough to sample without the data."""

    tokenizer: Any


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
            tokenized = isinstance(data, Tokenized) and (carried := self._carried()) is not None
            corpus = data.load_with(carried.tokenizer) if tokenized else data.load()
            self.experiment.task.check(corpus)
            return evaluate(self._evaluation, self.variables, corpus)
        corpus = self.experiment.data.load()
        if corpus.facts.get("sha256") != self.facts.get("sha256"):
            raise UsageError(
                f"the data {self.facts.get('source')!r} is not what the run in {self.path} was trained on: its hash is "
                f"{str(corpus.facts.get('sha256'))[:12]}, expected {str(self.facts.get('sha256'))[:12]}"
            )
        return evaluate(self._evaluation, self.variables, corpus)

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

    @functools.cached_property
    def _evaluation(self) -> Any:
        """The evaluation, compiled once."""
        return jax.jit(self.experiment.task.evaluate)

    def sample(self, seed: int, **options: Any) -> list[str]:
        """Samples, as the objective draws them.

        Raises:
          UsageError: the objective has no samples, or an option is out of range.
        """
        task = self.experiment.task
        if not hasattr(task, "sample"):
            raise UsageError(f"the objective {type(task).__name__} has nothing to sample")
        return task.sample(self.variables, self._carried(), jax.random.key(seed), **options)

    def _carried(self) -> Any:
        from arch_jax.data.text.tokenizers import tokenizer_from_json

        file = self.path / "tokenizer.json"
        if "tokenizer" not in self.facts and not file.exists():  # images, points and graphs are drawn without data
            return None
        try:
            return _Carried(tokenizer_from_json(json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise RunError(f"{file} is missing or damaged: {' '.join(str(problem).split())}") from None


def stored_experiment(path: Path | str) -> Experiment:
    """The experiment of the run in a folder.

    Raises:
      UsageError: there is no run, or it uses parts that are not known.
      RunError: its `config.json` is damaged.
    """
    import_components()
    stored = read_config(Path(path))["experiment"]
    try:
        return Experiment.from_json(stored)
    except UsageError as problem:
        raise UsageError(
            f"the run in {path} can't be opened: {problem}; parts of your own come with --import FILE"
        ) from None


def open_run(path: Path | str, imports: Sequence[str] = (), *, best: bool = False) -> Run:
    """Opens a run's newest whole checkpoint.

    Args:
      path: the run's folder.
      imports: Python files to run first, for parts of the model that are defined in them.
      best: the checkpoint with the lowest validation loss instead.

    Raises:
      UsageError: there is no run, or it uses parts that are not known.
      RunError: there is no whole checkpoint.
    """
    path = Path(path)
    for file in imports:
        if not Path(file).is_file():
            raise UsageError(f"--import {file!r} does not exist; expected a Python file")
        import_file(Path(file))
    config, experiment = read_config(path), stored_experiment(path)
    try:
        batch = {name: jax.ShapeDtypeStruct(tuple(x["shape"]), x["dtype"]) for name, x in config["batch"].items()}
    except (KeyError, TypeError, ValueError) as problem:
        raise RunError(f"{path / 'config.json'} is damaged: its batch can't be read ({problem})") from None
    try:
        state = jax.eval_shape(lambda b: initial_state(experiment, b), batch)
    except ArchJaxError:
        raise
    except Exception as problem:  # whatever the model raises for shapes that it was not trained on
        raise RunError(
            f"{path / 'config.json'} is damaged: its model can't be made for its batch "
            f"({type(problem).__name__}: {' '.join(str(problem).split())[:200]})"
        ) from None
    checkpoints = Checkpoints(path / "checkpoints", keep=experiment.keep, log=tell, reading=True)
    with checkpoints:
        step = checkpoints.best_step() if best else None
        restored = checkpoints.restore(state, step=step)
    if restored is None:
        raise RunError(f"the run in {path} has no checkpoint yet")
    return Run(path, experiment, restored[0], restored[1].evaluated, config["data"])
