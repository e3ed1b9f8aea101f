"""The train loop: one for all models. It knows players, not architectures."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from arch_jax.console import console
from arch_jax.errors import ArchJaxError, Diverged, RunError, UsageError
from arch_jax.evaluation.base import measured
from arch_jax.experiment import Experiment
from arch_jax.experiment import load as load_experiment
from arch_jax.train import own_data
from arch_jax.train.checkpointing.checkpoint import Checkpoints
from arch_jax.train.checks import check_batch
from arch_jax.train.compiled import Compiled
from arch_jax.train.distributed import Votes, leader
from arch_jax.train.given import FINISHED, Sources, demanded, open_given, trained_folder
from arch_jax.train.report import Events, Pace, Progress, draw_films, draw_losses
from arch_jax.train.showing import Showing, told
from arch_jax.train.state import TrainState
from arch_jax.train.stopping import stop_requests
from arch_jax.train.workdir import WorkDirectory, read_config, read_metrics, write


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a call of `train`.

    Attributes:
      path: the run's folder.
      step: steps taken in all.
      finished: whether that is all of them.
      validation: the last validation metrics, by name.
      shown: the files that show something, samples first.
      state: the last state.
      step_seconds: the median time of a step in this call, without evaluations; none if too few were taken to tell.
    """

    path: Path
    step: int
    finished: bool
    validation: dict[str, float]
    shown: tuple[Path, ...]
    state: TrainState
    step_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Within:
    """Resources shared by the runs of one study.

    Attributes:
      corpus: what `experiment.data.load()` gives.
      compiled: of a run that is `alike`.
      progress: a context manager with `update(step, loss)` and `say(sentence)`.
      sources: the trained parts that were opened already.
    """

    corpus: Any
    compiled: Compiled
    progress: Any
    sources: Sources = dataclasses.field(default_factory=dict)


def train(
    experiment: Experiment, path: Path | str, *, stop_after: int | None = None, within: Within | None = None
) -> Outcome:
    """Trains an experiment in a folder, from the start or from its last checkpoint.

    k steps, a stop and k steps more give the same bits as 2k steps: parameters, optimizer state and metrics. On another
    mesh a run goes on too, with other roundings.

    Several processes (`distributed.connected`) call this together, each with the same arguments and a folder that all
    of them see. The first writes what is in it; all take part in checkpoints. A run goes on with as many processes as
    it was saved with.

    Args:
      experiment: what to run.
      path: the run's folder; a run in it is resumed.
      stop_after: stops, with a checkpoint, after this many steps of this call.
      within: the study that this run is a part of, which shares its resources and wants no figures of each run.

    Raises:
      UsageError: bad settings; a folder that holds another run, or can't be written to.
      Diverged: a loss, metric or parameter that is not finite.
      RunError: no whole checkpoint to go on from, a disk that is full.
    """
    if stop_after is not None and stop_after < 1:
        raise UsageError(f"stop_after is {stop_after}; expected at least 1 step")
    if experiment.log_every > experiment.steps:
        raise UsageError(f"log_every is {experiment.log_every}; expected at most steps, which is {experiment.steps}")
    if within is None:
        config = read_config(Path(path), missing_ok=True)
        corpus, place = own_data.find(experiment.data, Path(path), config, console.tell if leader() else None)
    else:
        corpus, place = within.corpus, None
    experiment.check(corpus)
    with WorkDirectory(path) as directory:
        batch = {name: jax.ShapeDtypeStruct(*facts) for name, facts in corpus.shapes.items()}
        train_demanded(experiment)
        begun = read_config(directory.path, missing_ok=True) if directory.has_checkpoint else None
        sources = None if within is None else within.sources
        experiment, given, held = open_given(
            experiment, batch, begun=begun and begun.get("experiment"), sources=sources
        )
        if held:  # a trained part that does not fit is known for it once it is open, and still before the training
            experiment.check(corpus)
        experiment = directory.claim(experiment, corpus.facts, batch, place)
        if corpus.tokenizer is not None and leader():
            write_tokenizer(directory.path, corpus.tokenizer)
        keeping = {"keep": experiment.keep, "log": console.tell if leader() else lambda sentence: None}
        with Checkpoints(directory.checkpoints, **keeping) as checkpoints, stop_requests() as stop:
            compiled = Compiled(experiment, batch, corpus.full_batch, given) if within is None else within.compiled
            progress = None if within is None else within.progress
            return _Run(experiment, directory, corpus, checkpoints, stop, compiled, held, progress).take(stop_after)


def train_demanded(experiment: Experiment) -> None:
    """Trains the experiments whose results this one uses, where that has not been done."""
    for name, field in demanded(experiment).items():
        folder = trained_folder(name)
        console.tell(f"training {name} for {field}, once, in {folder}")
        if train(load_experiment(name)[0], folder).finished:
            write(folder / FINISHED, "")
        else:
            raise RunError(f"the training of {name}, which {field} names, was stopped; the same command resumes it")


class _Run:
    """One call of `train`: what its parts share."""

    def __init__(self, experiment, directory, corpus, checkpoints, stop, compiled, held, progress=None) -> None:
        self.experiment, self.directory, self.corpus = experiment, directory, corpus
        self.checkpoints, self.stop = checkpoints, stop
        self.compiled, self.placement = compiled, compiled.placement
        self.held = self.placement.everywhere(held)
        self.leading = leader()
        self.progress = progress
        self.shows = progress is None
        self.unmeasured: tuple[str, Exception] | None = None

    def take(self, stop_after: int | None) -> Outcome:
        experiment = self.experiment
        state, iterator = self._begin()
        begun = step = int(state.step)
        if step > experiment.steps:
            raise UsageError(
                f"steps is {experiment.steps}, but the run in {self.directory.path} has taken {step} already; "
                "expected at least as many"
            )
        last = experiment.steps if stop_after is None else min(experiment.steps, step + stop_after)
        several = jax.process_count() > 1  # each then has its own rows of a batch
        unit, per_step = self.corpus.unit, self.corpus.units_per_batch
        validation: dict[str, float] = {}
        shown: list[Path] = []
        state = self.placement.place(state)
        progressing = self.progress
        if progressing is None:
            progressing = Progress(experiment.steps, step, unit, per_step) if self.leading else _Silent()
        self.showing = Showing(self.directory.path, progressing.say)
        votes, saved = Votes(self.stop), begun if self.checkpoints.steps() else None
        tensorboard = experiment.tensorboard and self.leading
        with Events(self.directory.path, tensorboard, step) as events, progressing as progress:
            # Nothing of the folder is changed before all that can be refused was.
            self.directory.settle()
            self.directory.cut_metrics(step)
            if begun and step < last and due(experiment, step, last)[0]:
                shown = self._show(step, self._alone(step, self._variables(state)), again=True)
            pending, pace, numbers = None, Pace(), experiment.numbers
            while step < last and not votes.stopping:
                count = until_boundary(experiment, step, last)
                batches = [next(iterator) for _ in range(count)]
                if not several:
                    for batch in batches:
                        check_batch(batch, self.corpus.shapes)
                stacked = self.placement.stack(batches, experiment.steps_per_dispatch)
                state, metrics = self.placement.run(state, stacked, count, numbers)
                if pending is not None:  # fetched late: the device works on the next steps meanwhile
                    self._record(*pending, progress, events)
                    pace.reached(pending[0] + pending[1])
                    votes.count()
                votes.cast()
                pending = (step, count, metrics)
                step += count
                evaluating, saving = due(experiment, step, last)
                if evaluating or saving:
                    self._record(*pending, progress, events)
                    pending = None
                    pace.reached(step)
                    votes.count()
                    if evaluating:
                        validation, variables = self._evaluate(step, state, progress, events)
                    self._save(step, state, iterator, validation if evaluating else None)
                    saved = step
                    if evaluating:
                        self.checkpoints.wait()
                        shown = self._show(step, variables)
                    pace.paused()
            if pending is not None:
                self._record(*pending, progress, events)
            if votes.stopping and step != saved:
                self._save(step, state, iterator, None)
            self.checkpoints.wait()
            if step >= experiment.steps and not validation:  # the run was finished before this call
                validation, variables = self._evaluate(step, state, progress, events, again=begun == step)
                shown = self._show(step, variables)
            if self.leading and self.shows:
                path, title = self.directory.path, f"{experiment.name}: loss"
                shown += self.showing.made("the film of the samples", lambda: draw_films(path))
                shown += self.showing.made("the figure of the losses", lambda: [draw_losses(path, title)])
        if self.unmeasured is not None:
            raise not_measured(*self.unmeasured, self.directory.path)
        return Outcome(
            path=self.directory.path,
            step=step,
            finished=step >= experiment.steps,
            validation=validation,
            shown=tuple(shown),
            state=self.placement.whole(state),
            step_seconds=pace.median,
        )

    def _begin(self) -> tuple[TrainState, Any]:
        """The state of the newest whole checkpoint, or a fresh one; and the data from there on."""
        several = jax.process_count() > 1 and not self.placement.full_batch
        shard = {"shard": (jax.process_index(), jax.process_count())} if several else {}
        iterator = self.corpus.train(self.experiment.seed, **shard)
        restored = self.checkpoints.restore(self.compiled.saved, iterator) if self.checkpoints.steps() else None
        if restored is not None:
            if self.leading:
                console.tell(f"going on from step {restored[0]} in {self.directory.path}")
            return self.compiled.with_frozen(restored[1]), iterator
        return self.compiled.fresh(self.experiment.seed), iterator

    def _record(self, before: int, count: int, metrics: Any, progress: Any, events: Events) -> None:
        """Fetches the metrics of a dispatch and writes them down.

        Raises:
          Diverged: one of them is not finite.
        """
        lines, bad = lines_of(jax.device_get(metrics), before, count)
        logged = [line for line in lines if line["step"] % self.experiment.log_every == 0]
        self.directory.append_metrics(logged)
        if bad is not None:
            raise Diverged(self._not_finite(*bad))
        events.add(logged)
        progress.update(before + count, loss_of(lines[-1]))

    def _not_finite(self, step: int, name: str, value: float) -> str:
        """The sentence for what is not finite; waits for a save under way, which counts."""
        self.checkpoints.wait()
        saved = self.checkpoints.steps()
        rest = f"the last good checkpoint is that of step {saved[-1]}" if saved else "there is no checkpoint before it"
        return f"{name} is {value} at step {step} of the run in {self.directory.path}; {rest}"

    def _evaluate(
        self, step: int, state: Any, progress: Any, events: Events, again: bool = False
    ) -> tuple[dict[str, float], Any]:
        """Validation metrics after `step`, and the variables to show.

        A measure that fails costs a warning; after the last step the run is first saved and shown.
        """
        variables = self._variables(state)
        validation = evaluate(self.compiled.evaluate, variables, self.corpus, self.placement.spread)
        bad = next((name for name, value in validation.items() if not math.isfinite(value)), None)
        if bad is not None:
            raise Diverged(self._not_finite(step, f"validation {bad}", validation[bad]))
        variables = self._alone(step, variables)
        if not self.leading:  # all processes gave their parts; what follows the first does alone
            return validation, variables
        finished = step >= self.experiment.steps
        due = [one for one in self.experiment.used_measures if finished or one.when == "evaluation"]

        def failed(measure: str, problem: Exception) -> None:
            self.showing.failed(measure, problem)
            if finished and self.unmeasured is None:
                self.unmeasured = measure, problem

        numbers = measured(due, *self._parts(variables), taken=validation, failed=failed)
        bad = next((name for name, value in numbers.items() if not math.isfinite(value)), None)
        if bad is not None:
            raise Diverged(self._not_finite(step, f"the measure {bad}", numbers[bad]))
        validation = validation | numbers
        line = {"step": step} | {f"validation/{name}": value for name, value in validation.items()}
        known = again and any(row == line for row in reversed(read_metrics(self.directory.path)))
        if not known:
            self.directory.append_metrics([line])
            events.add([line])
        progress.say(f"step {step}: validation " + ", ".join(f"{n} {v:.4f}" for n, v in validation.items()))
        return validation, variables

    def _parts(self, variables: Any) -> tuple[Any, ...]:
        """The arguments of measures and figures.

        The same key at every step: the same images, noise and draws, so that what changes is the model.
        """
        experiment = self.experiment
        return experiment.task, variables, experiment.used_sampler, self.corpus, jax.random.key(experiment.seed)

    def _variables(self, state: Any) -> Any:
        """The variables that are evaluated."""
        variables = self.placement.whole(state).evaluated
        return {**variables, "frozen": self.held} if self.held else variables

    def _alone(self, step: int, variables: Any) -> Any:
        """The variables for what the first process does alone, measures and figures. All give their parts."""
        return self.placement.shown(variables) if self.shows or step >= self.experiment.steps else variables

    def _show(self, step: int, variables: Any, again: bool = False) -> list[Path]:
        """Draws samples and figures, after the save: whatever they do, the run goes on or is resumed from there.

        Args:
          step: steps taken.
          variables: as `_evaluated` gives them.
          again: only what a process that was killed left out.
        """
        if not self.leading or not self.shows or (again and not self.showing.missing(step)):
            return []
        return self.showing.draw(step, self.experiment.used_figures, self._parts(variables))

    def _save(self, step: int, state: Any, iterator: Any, validation: dict[str, float] | None) -> None:
        """Saves a state, unless it is broken already.

        Raises:
          Diverged: a parameter is not finite.
          RunError: the save failed.
        """
        whole = self.placement.whole(state)
        # A step's own metrics say nothing of what its update made: without this look, the next step would call a
        # checkpoint good that is not.
        flags = jax.device_get(self.compiled.finite(whole.parameters))
        bad = next((path for path, fine in jax.tree_util.tree_leaves_with_path(flags) if not fine), None)
        if bad is not None:
            name = jax.tree_util.keystr(bad, simple=True, separator="/")
            raise Diverged(self._not_finite(step, f"the parameter {name}", math.nan))
        self.checkpoints.save(step, whole.replace(frozen={}), iterator, validation)


def not_measured(measure: str, problem: Exception, path: Path) -> Exception:
    """The error of a run that is whole but for a number."""
    if isinstance(problem, ArchJaxError):
        return problem
    error = RunError(
        f"{measure} failed: {told(problem)}; the run in {path} is trained and saved, and the same command measures it "
        "again"
    )
    error.__cause__ = problem
    return error


def until_boundary(experiment: Experiment, step: int, last: int) -> int:
    """Steps of the next dispatch: never past an evaluation, a checkpoint or the end."""
    every = (experiment.evaluate_every, experiment.checkpoint_every)
    return min(last, step + experiment.steps_per_dispatch, *(step - step % n + n for n in every)) - step


def due(experiment: Experiment, step: int, last: int) -> tuple[bool, bool]:
    """(evaluation due, checkpoint due) after `step`."""
    evaluating = step == experiment.steps or step % experiment.evaluate_every == 0
    return evaluating, evaluating or step == last or step % experiment.checkpoint_every == 0


def lines_of(metrics: Any, before: int, count: int) -> tuple[list[dict[str, Any]], tuple[int, str, float] | None]:
    """The lines of `metrics.jsonl` for a dispatch.

    Args:
      metrics: name -> (sums, weights), one entry a step.
      before: steps taken before it.
      count: steps taken in it.

    Returns:
      The lines up to the first with a value that is not finite, and that value's step, metric and itself, if any.
    """
    # Losses first: where several metrics are not finite, a loss is the one to name. (JAX sorts by name.)
    metrics = dict(sorted(metrics.items(), key=lambda item: not _is_loss(item[0])))
    lines: list[dict[str, Any]] = []
    for i in range(count):
        line: dict[str, Any] = {"step": before + i + 1}
        for name, (sums, weights) in metrics.items():
            value = float(sums[i]) / float(weights[i]) if weights[i] else None
            if value is not None and not math.isfinite(value):
                return lines, (before + i + 1, name, value)
            line[name] = value
        lines.append(line)
    return lines, None


def loss_of(line: dict[str, Any]) -> float | None:
    """The first player's loss that a line tells; none where it tells none."""
    return next((value for name, value in line.items() if _is_loss(name) and value is not None), None)


def _is_loss(metric: str) -> bool:
    """True if a metric is a player's loss."""
    return metric.split("/")[-1] == "loss" and not metric.startswith("validation/")


class _Silent(contextlib.AbstractContextManager):
    """The progress of a process that does not talk."""

    def update(self, step: int, loss: float | None) -> None: ...

    def say(self, sentence: str) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


def evaluate(
    evaluation: Any, variables: Any, corpus: Any, spread: Callable[[Any], Any] = lambda batch: batch
) -> dict[str, float]:
    """Validation metrics over the whole validation data: sums over all batches, divided once.

    Args:
      evaluation: (variables, batch) -> metrics as name -> (sum, weight); jitted.
      variables: of the model.
      corpus: has `validation()`.
      spread: lays a batch on the devices; by default jit does.
    """
    totals: dict[str, np.ndarray] = {}
    for batch in corpus.validation():
        for name, pair in jax.device_get(evaluation(variables, spread(batch))).items():
            totals[name] = totals.get(name, np.zeros(2)) + np.array(pair, np.float64)
    if not totals:
        raise UsageError("the data has no validation batches; expected one at least, at each call of `validation()`")
    # What no row counts for has no mean; a loss of that kind is told.
    counted = {name: pair for name, pair in totals.items() if pair[1] or name == "loss"}
    return {name: float(total / weight) if weight else math.nan for name, (total, weight) in counted.items()}


def write_tokenizer(path: Path, tokenizer: Any) -> None:
    """A run carries its tokenizer, so that samples can be drawn where the data is not."""
    write(path / "tokenizer.json", json.dumps(tokenizer.to_json(), ensure_ascii=False))
