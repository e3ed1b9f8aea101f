"""Several seeds as one program: the whole train step under `vmap`, each seed with its own batches.

On a GPU or TPU a small model leaves most of the chip idle, and n seeds cost little more than one. The group is saved as
one state, in STUDY/groups/KEY/, so that it is resumed as it was: diverged seeds stay in it, ignored. Each seed's
losses are written where they would be had it been run alone.
"""

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from arch_jax.console import console
from arch_jax.errors import RunError, UsageError
from arch_jax.evaluation.base import measured
from arch_jax.experiment import Experiment
from arch_jax.study.runs.progress import StudyProgress
from arch_jax.study.runs.run import Store, StudyRun
from arch_jax.train.checkpointing.checkpoint import Checkpoints
from arch_jax.train.checks import checked_evaluation
from arch_jax.train.compiled import memory
from arch_jax.train.loop import due, lines_of, loss_of, not_measured, until_boundary
from arch_jax.train.report import Pace
from arch_jax.train.showing import Warned
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_program
from arch_jax.train.stopping import stop_requests
from arch_jax.train.workdir import WorkDirectory, write


class TooLarge(RunError):
    """So many seeds at once don't fit into the device's memory."""


class Seeds:
    """n runs that differ in the seed alone, as one program; sharded over several devices if their number divides n.

    Args:
      experiment: the experiment, but for the seed.
      seeds: of the runs.
      corpus: the data; each seed has an order of its own.

    Raises:
      UsageError: the experiment sets its own placement of arrays.
      TooLarge: the seeds exceed the device's memory.
    """

    def __init__(self, experiment: Experiment, seeds: list[int], corpus: Any) -> None:
        if experiment.parallel != "jit" or any(size > 1 for size in experiment.mesh.asked.values()):
            raise UsageError(
                "seeds that are trained together take the devices for themselves; expected parallel=jit and no mesh"
            )
        self.experiment, self.seeds, self.full = experiment, np.array(seeds, np.uint32), corpus.full_batch
        batch = {name: jax.ShapeDtypeStruct(*facts) for name, facts in corpus.shapes.items()}
        make = jax.vmap(lambda batch, seed: initial_state(experiment, batch, seed), in_axes=(None, 0))
        self._make = lambda seeds: make(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch), seeds)
        self._place = self._placement(len(seeds))
        record = experiment.steps_per_dispatch if self.full else None
        program = jax.vmap(make_program(experiment, record=record), in_axes=(0, None if self.full else 0, None, None))
        shapes = jax.eval_shape(self._make, self.seeds)
        self.shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._place, weak_type=x.weak_type), shapes
        )
        front = (1,) if self.full else (len(seeds), experiment.steps_per_dispatch)
        stacked = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*front, *x.shape), x.dtype, sharding=None if self.full else self._place),
            batch,
        )
        self._program = self._compile(program, stacked)
        self.evaluate = jax.jit(jax.vmap(checked_evaluation(experiment.task), in_axes=(0, None)))
        self.finite = jax.jit(jax.vmap(lambda tree: jnp.all(jnp.array([jnp.isfinite(x).all() for x in _floats(tree)]))))

    def _placement(self, count: int) -> NamedSharding | None:
        """A sharding of the seeds over as many devices as divide them; None is the first device."""
        devices = jax.devices()
        used = max(n for n in range(1, len(devices) + 1) if count % n == 0)
        if used == 1:
            return None
        mesh = jax.make_mesh((used,), ("seeds",), axis_types=(AxisType.Auto,), devices=devices[:used])
        return NamedSharding(mesh, PartitionSpec("seeds"))

    def _compile(self, program: Any, stacked: Any) -> Any:
        count = len(self.seeds)
        try:
            lowered = jax.jit(program, donate_argnums=0).lower(
                self.shapes, stacked, np.int32(0), self.experiment.numbers
            )
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as problem:
            if "RESOURCE_EXHAUSTED" not in str(problem):
                raise
            raise TooLarge(f"{count} seeds at once don't fit into the device's memory") from None
        needed, limit = memory(compiled), device_memory()
        if count > 1 and needed is not None and limit is not None and needed > 0.9 * limit:
            raise TooLarge(f"{count} seeds at once take {needed / 1e9:.1f} GB, and the device has {limit / 1e9:.1f} GB")
        self.peak_bytes = needed
        return compiled

    def fresh(self) -> Any:
        """The states before the first step, on a leading axis."""
        return jax.jit(self._make, out_shardings=self._place)(self.seeds)

    def stack(self, batches: list[list[Any]]) -> Any:
        """Batches of one dispatch, a list of steps for each seed, padded with the last step's."""
        if self.full:
            return jax.tree.map(lambda x: np.asarray(x)[None], batches[0][0])
        size = self.experiment.steps_per_dispatch
        padded = [steps + [steps[-1]] * (size - len(steps)) for steps in batches]
        stacked = jax.tree.map(lambda *x: np.stack(x), *[jax.tree.map(lambda *x: np.stack(x), *s) for s in padded])
        return stacked if self._place is None else jax.device_put(stacked, self._place)

    def run(self, state: Any, batches: Any, count: int) -> tuple[Any, Any]:
        """Takes `count` steps with every seed. The given state is donated."""
        return self._program(state, batches, np.int32(count), self.experiment.numbers)


def train_together(study: Store, group: Mapping[str, StudyRun], progress: StudyProgress) -> None:
    """Trains cells that differ in the seed alone to their end, and stores their results.

    Raises:
      TooLarge: they don't fit into memory together; nothing was begun.
      Stopped: SIGTERM or Ctrl-C came; the group is saved.
    """
    first = next(iter(group.values()))
    experiment, corpus = first.experiment, study.corpus(first)
    program = Seeds(experiment, [cell.experiment.seed for cell in group.values()], corpus)
    label = f"{first.label}, {len(group)} seeds"
    with _Group(study, group, program, corpus, progress.cell(label, experiment.steps, len(group))) as running:
        running.take()


class _Group:
    """One call of `train_together`: the state that its parts share."""

    def __init__(self, study: Store, group: Mapping[str, StudyRun], program: Seeds, corpus: Any, progress: Any) -> None:
        self.study, self.group, self.program, self.corpus, self.progress = study, group, program, corpus, progress
        self.experiment = program.experiment
        self.folder = study.path / "groups" / hashlib.sha256(" ".join(group).encode()).hexdigest()[:16]
        self.active = {i: key for i, (key, cell) in enumerate(group.items()) if study.kept(key, cell) is None}
        self.pace = Pace()
        self.warned, self.unmeasured = Warned(console.tell), None

    def __enter__(self) -> "_Group":
        self._stack = contextlib.ExitStack()
        shapes = {name: jax.ShapeDtypeStruct(*facts) for name, facts in self.corpus.shapes.items()}
        self.directories: dict[int, WorkDirectory] = {}
        for i, key in self.active.items():
            directory = self._stack.enter_context(WorkDirectory(self.study.folder(key)))
            cell = self.group[key]
            directory.claim(cell.stored, self.corpus.facts, shapes)
            directory.settle()
            self.directories[i] = directory
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder / "group.json", json.dumps(list(self.group)))
        checkpoints = Checkpoints(self.folder / "checkpoints", keep_best=False, log=console.tell)
        self.checkpoints = self._stack.enter_context(checkpoints)
        self.stop = self._stack.enter_context(stop_requests())
        self._stack.enter_context(self.progress)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def take(self) -> None:
        """Trains to the end, or until all have diverged."""
        experiment = self.experiment
        iterators = _Iterators([self.corpus.train(int(seed)) for seed in self.program.seeds])
        restored = self.checkpoints.restore(self.program.shapes, iterators) if self.checkpoints.steps() else None
        step, state = restored if restored is not None else (0, self.program.fresh())
        validations: dict[int, dict[str, float]] = {}
        for directory in self.directories.values():
            directory.cut_metrics(step)
        while step < experiment.steps and self.active and not self.stop.is_set():
            count = until_boundary(experiment, step, experiment.steps)
            batches = iterators.next(count)
            state, metrics = self.program.run(state, self.program.stack(batches), count)
            self._record(step, count, jax.device_get(metrics))
            step += count
            self.pace.reached(step)
            evaluating, saving = due(experiment, step, experiment.steps)
            if evaluating and self.active:
                validations = self._evaluate(step, state)
            if saving and self.active:
                self._save(step, state, iterators)
                self.pace.paused()
        if self.active and step < experiment.steps:
            self._save(step, state, iterators)
            self.checkpoints.wait()
            raise self.study.stopped()
        self.checkpoints.wait()
        if self.active and not validations:  # the group was finished before this call, and not written down
            validations = self._evaluate(step, state)
        if self.unmeasured is not None:
            raise not_measured(*self.unmeasured, self.folder)
        for i, key in self.active.items():
            self._done(key, step=step, validation=validations[i], step_seconds=self._seconds())
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def _seconds(self) -> float | None:
        """A step's time, shared among the seeds."""
        return None if self.pace.median is None else self.pace.median / len(self.group)

    def _done(self, key: str, **found: Any) -> None:
        several = {"together": len(self.group), "peak_bytes": self.program.peak_bytes}
        self.study.write(key, self.group[key], **several, **found)

    def _diverged(self, i: int, step: int, name: str, value: float) -> None:
        """Drops seed number i: it stays in the program, but is ignored."""
        key = self.active.pop(i)
        self._done(key, status="diverged", reason=f"{name} is {value} at step {step}", step=step)

    def _record(self, before: int, count: int, metrics: Any) -> None:
        shown = None
        for i in list(self.active):
            own = {name: (sums[i], weights[i]) for name, (sums, weights) in metrics.items()}
            lines, bad = lines_of(own, before, count)
            self.directories[i].append_metrics([x for x in lines if x["step"] % self.experiment.log_every == 0])
            if bad is not None:
                self._diverged(i, *bad)
            elif shown is None:
                shown = loss_of(lines[-1])
        self.progress.update(before + count, shown)

    def _evaluate(self, step: int, state: Any) -> dict[int, dict[str, float]]:
        """Validation metrics of every remaining seed, logged."""
        totals: dict[str, np.ndarray] = {}
        for batch in self.corpus.validation():
            for name, pair in jax.device_get(self.program.evaluate(state.evaluated, batch)).items():
                totals[name] = totals.get(name, 0) + np.array(pair, np.float64)  # "pair seed"
        found = {}
        for i in list(self.active):
            own = {name: float(s[i] / w[i]) if w[i] else math.nan for name, (s, w) in totals.items()}
            own |= self._measured(step, i, state, own)
            bad = next((name for name, value in own.items() if not math.isfinite(value)), None)
            if bad is not None:
                self._diverged(i, step, f"validation {bad}", own[bad])
                continue
            line = {"step": step} | {f"validation/{name}": value for name, value in own.items()}
            self.directories[i].append_metrics([line])
            found[i] = own
        return found

    def _measured(self, step: int, i: int, state: Any, taken: Mapping[str, float]) -> dict[str, float]:
        """The numbers of the measures that are due, for one seed."""
        experiment = self.program.experiment
        finished = step >= experiment.steps
        due_now = [one for one in experiment.used_measures if finished or one.when == "evaluation"]
        if not due_now:
            return {}

        def failed(measure: str, problem: Exception) -> None:
            self.warned.failed(measure, problem)
            if finished and self.unmeasured is None:
                self.unmeasured = measure, problem

        variables = jax.tree.map(lambda x: x[i], state.evaluated)
        key = jax.random.key(int(self.program.seeds[i]))
        parts = (experiment.task, variables, experiment.used_sampler, self.corpus, key)
        return measured(due_now, *parts, taken, failed)

    def _save(self, step: int, state: Any, iterators: "_Iterators") -> None:
        """Saves the group, after checking whose parameters are still finite."""
        fine = jax.device_get(self.program.finite(state.parameters))
        for i in [i for i in self.active if not fine[i]]:
            self._diverged(i, step, "a parameter", math.nan)
        if self.active:
            self.checkpoints.save(step, state, iterators)


class _Iterators:
    """The data of every seed, as one iterator that can be saved."""

    def __init__(self, iterators: list[Any]) -> None:
        self._all = iterators

    def next(self, count: int) -> list[list[Any]]:
        """The next `count` batches of each seed."""
        return [[next(one) for _ in range(count)] for one in self._all]

    def get_state(self) -> Any:
        """Of each, as JSON data."""
        states = [one.get_state() for one in self._all]
        return [state.decode() if isinstance(state, bytes) else state for state in states]

    def set_state(self, states: Any) -> None:
        """Restores the position of each."""
        for one, state in zip(self._all, states, strict=True):
            one.set_state(state.encode() if isinstance(state, str) else state)


def begun_groups(path: Path) -> Iterator[list[str]]:
    """The keys of the cells of every group that was begun in a study's folder and has a checkpoint."""
    for file in sorted((path / "groups").glob("*/group.json")):
        if (file.parent / "checkpoints").is_dir():
            with contextlib.suppress(OSError, ValueError):
                yield json.loads(file.read_text(encoding="utf-8"))


def device_memory() -> int | None:
    """Bytes of the first device's memory, if it reports them."""
    found = jax.devices()[0].memory_stats() or {}
    return found.get("bytes_limit")


def _floats(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
