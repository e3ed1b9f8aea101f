"""Cells: the runs of a study. Each is kept in the study's folder, finished ones for good.

    STUDY/cells/KEY/config.json     the run, as `arch-jax train` would write it
    STUDY/cells/KEY/metrics.jsonl   its losses
    STUDY/cells/KEY/result.json     its result; once this exists, the cell is done

A cell's key is a hash of everything that its result depends on, so that a changed configuration is a new cell, and a
study that asks again for a finished one gets the stored result.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from arch_jax import registry
from arch_jax.console import console
from arch_jax.data.base import load_corpus
from arch_jax.errors import Diverged, RunError, UsageError
from arch_jax.experiment import Experiment
from arch_jax.flops import count_flops
from arch_jax.study.runs.lock import lock_study
from arch_jax.study.runs.progress import StudyProgress
from arch_jax.study.runs.run import RunResult, Stopped, StudyRun
from arch_jax.study.runs.vmapped import TooLarge, begun_groups, train_together
from arch_jax.train.compiled import Compiled, alike, memory
from arch_jax.train.given import Sources, names_sources, open_given
from arch_jax.train.loop import Within, loss_of, train, train_demanded
from arch_jax.train.state import Given, initial_state
from arch_jax.train.step import make_step
from arch_jax.train.stopping import stop_requests
from arch_jax.train.workdir import read_metrics, write

#: Fields of an experiment that its result does not depend on.
_BESIDE = ("name", "keep", "tensorboard")
#: The number of compiled programs kept at a time.
_HELD = 3


class Study:
    """A folder of cells, locked while it is open.

    Args:
      path: the folder; created if missing.
      together: the number of seeds trained as one program, by `vmap`; None is as many as fit into memory on an
        accelerator and 1 on a CPU, where more gain nothing.
      keep_checkpoints: whether those of finished cells are kept.

    Raises:
      UsageError: it can't be written to, or another study has it open (the message says which).
    """

    def __init__(self, path: Path | str, *, together: int | None = None, keep_checkpoints: bool = False) -> None:
        if together is not None and together < 1:
            raise UsageError(f"together is {together}; expected at least 1 seed")
        self.path = Path(path)
        self.together, self.keep_checkpoints = together, keep_checkpoints
        self._corpora: dict[str, Any] = {}
        self.sources: Sources = {}
        #: Gives the files of the package that have run so far, with the hash of their code.
        self.code: Callable[[], Mapping[str, str]] = dict
        self._compiled: OrderedDict[str, Compiled] = OrderedDict()
        self._facts: dict[str, tuple[int, int]] = {}
        self._lock = lock_study(self.path)

    def __enter__(self) -> "Study":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def run(self, cells: Sequence[StudyRun]) -> list[RunResult]:
        """Runs the missing cells, and returns the results in the order of the cells.

        A cell that diverges is a result too. Everything that can be refused is refused before the first step.

        Raises:
          UsageError: an experiment that can't be run; the sentence begins with the cell's label.
          Stopped: SIGTERM or Ctrl-C came; the current cell is saved and will be resumed.
          RunError: a run failed for another reason than divergence.
        """
        unique = {self.key(cell): cell for cell in cells}
        todo = {key: cell for key, cell in unique.items() if self.kept(key, cell) is None}
        for cell in todo.values():
            with blamed_on(cell.label):
                self._check(cell)
        if len(unique) > len(todo):
            console.tell(f"{len(unique) - len(todo)} of {len(unique)} cells are done already in {self.path}")
        if todo:
            total = sum(cell.experiment.steps for cell in todo.values())
            with StudyProgress(total, len(todo)) as progress, stop_requests() as stop:
                for group in self._groups(todo, unique):
                    if stop.is_set():
                        raise self.stopped()
                    self._take(group, progress)
        return [self.result(cell) for cell in cells]

    def result(self, cell: StudyRun) -> RunResult:
        """The result of a finished cell.

        Raises:
          RunError: it is not done.
        """
        key = self.key(cell)
        found = self.kept(key, cell)
        if found is None:
            raise RunError(f"the cell {cell.label} in {self.folder(key)} is not done")
        return found

    def key(self, cell: StudyRun) -> str:
        """16 hexadecimal digits: a hash of all that the cell's result depends on, its data's content included."""
        # A trained part is named by its source, and what counts is what that holds.
        experiment = self.opened(cell)[0] if names_sources(cell.experiment) else cell.experiment
        data = experiment.settled().to_json()
        whole = {name: value for name, value in data.items() if name not in _BESIDE}
        whole |= {"part": cell.part, "sha256": self.corpus(cell).facts.get("sha256")}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]

    def folder(self, key: str) -> Path:
        """The folder of a cell."""
        return self.path / "cells" / key

    def corpus(self, cell: StudyRun) -> Any:
        """The cell's data, read once, with the validation batches of its part."""
        name = json.dumps(cell.experiment.to_json()["data"], sort_keys=True)
        if name not in self._corpora:
            self._corpora[name] = load_corpus(cell.experiment.data, console.tell)
        corpus = self._corpora[name]
        return corpus if cell.part == "all" else ValidationPart(corpus, cell.part)

    def opened(self, cell: StudyRun) -> tuple[Experiment, Given]:
        """The cell's experiment with its trained parts opened, each source once in a study."""
        train_demanded(cell.experiment)
        experiment, given, _ = open_given(cell.experiment, shapes(self.corpus(cell)), sources=self.sources)
        return experiment, given

    def facts(self, cell: StudyRun) -> tuple[int, int]:
        """The cell's parameters, and the FLOPs of its step in matrix products."""
        batch = shapes(self.corpus(cell))
        name = alike(cell.experiment, batch)
        if name not in self._facts:
            experiment, given = self.opened(cell)
            state = jax.eval_shape(lambda b, g: initial_state(experiment, b, given=g), batch, given)
            flops = count_flops(make_step(experiment), state, batch).products
            self._facts[name] = (registry.count(state.parameters), flops)
        return self._facts[name]

    def _check(self, cell: StudyRun) -> None:
        """Refuses cells that can't be run, without running them."""
        experiment = cell.experiment
        if experiment.log_every > experiment.steps:
            raise UsageError(
                f"log_every is {experiment.log_every}; expected at most steps, which is {experiment.steps}"
            )
        experiment.check_new()
        experiment.check(self.corpus(cell))
        self.facts(cell)

    def _groups(self, todo: Mapping[str, StudyRun], asked: Mapping[str, StudyRun]) -> Iterator[dict[str, StudyRun]]:
        """Groups the cells to be trained as one: alone, or several seeds of one variant."""
        left = dict(todo)
        for keys in begun_groups(self.path):  # what was begun as one is resumed as one
            if any(key in left for key in keys) and all(key in asked for key in keys):
                yield {key: asked[key] for key in keys}
                left = {key: cell for key, cell in left.items() if key not in keys}
        several = self.together or (len(todo) if jax.default_backend() in ("gpu", "tpu") else 1)
        while left:
            first = next(iter(left.values()))
            most = 1 if names_sources(first.experiment) else several
            same = [key for key, cell in left.items() if _variant(cell) == _variant(first)][:most]
            yield {key: left.pop(key) for key in same}

    def _take(self, group: Mapping[str, StudyRun], progress: StudyProgress) -> None:
        """Runs a group to its end."""
        if len(group) == 1:
            self._alone(*next(iter(group.items())), progress)
            return
        try:
            train_together(self, group, progress)
        except TooLarge as problem:
            keys = list(group)
            half = len(keys) // 2
            console.tell(f"{problem}; {len(keys)} seeds are taken {len(keys) - half} and {half} at a time")
            for part in (keys[half:], keys[:half]):
                self._take({key: group[key] for key in part}, progress)

    def _alone(self, key: str, cell: StudyRun, progress: StudyProgress) -> None:
        """Trains one cell with the train loop, and stores its result."""
        corpus, folder = self.corpus(cell), self.folder(key)
        experiment = cell.stored
        with blamed_on(cell.label):
            compiled = self.compiled(cell)
            shown = progress.cell(f"{cell.label}, seed {experiment.seed}", experiment.steps)
            within = Within(corpus, compiled, shown, self.sources)
            try:
                outcome = train(experiment, folder, within=within)
            except Diverged as problem:
                within.progress.ended()
                last = max((line["step"] for line in read_metrics(folder)), default=0)
                self.write(key, cell, status="diverged", reason=_without(str(problem), folder), step=last)
                return
        if not outcome.finished:
            raise self.stopped()
        self.write(
            key,
            cell,
            step=outcome.step,
            validation=outcome.validation,
            step_seconds=outcome.step_seconds,
            peak_bytes=compiled.placement.compiled and memory(compiled.placement.compiled),
        )

    def compiled(self, cell: StudyRun) -> Compiled:
        """The programs for a cell, shared with every cell that is `alike`; the last few are kept."""
        corpus = self.corpus(cell)
        batch = shapes(corpus)
        name = alike(cell.experiment, batch, corpus.full_batch)
        if name not in self._compiled:
            experiment, given = self.opened(cell)
            self._compiled[name] = Compiled(experiment, batch, corpus.full_batch, given)
            while len(self._compiled) > _HELD:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(name)
        return self._compiled[name]

    def write(self, key: str, cell: StudyRun, **found: Any) -> None:
        """Stores the result of a cell, and deletes its checkpoints."""
        parameters, flops = self.facts(cell)
        settled = {"status": "finished", "reason": "", "step": 0, "validation": {}, "step_seconds": None}
        settled |= {"peak_bytes": None, "together": 1, "parameters": parameters, "flops": flops} | found
        settled |= {"code": dict(self.code())}
        folder = self.folder(key)
        write(folder / "result.json", json.dumps(settled | {"label": cell.label}, indent=1) + "\n")
        if not self.keep_checkpoints:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def kept(self, key: str, cell: StudyRun) -> RunResult | None:
        """The result in a cell's folder, if there is an intact one."""
        folder = self.folder(key)
        try:
            found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            kinds = {"status": str, "reason": str, "step": int, "validation": dict, "parameters": int, "flops": int}
            if any(not isinstance(found[name], kind) for name, kind in kinds.items()):
                raise ValueError
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            console.tell(f"{folder / 'result.json'} is damaged; the cell is run again")
            return None
        lines = read_metrics(folder)
        return RunResult(
            cell=cell,
            status="diverged" if found["status"] == "diverged" else "finished",
            reason=found["reason"],
            step=found["step"],
            validation={name: float(value) for name, value in found["validation"].items()},
            curve=tuple((line["step"], loss) for line in lines if (loss := loss_of(line)) is not None),
            checks=tuple((line["step"], checked) for line in lines if (checked := _checked(line))),
            parameters=found["parameters"],
            flops=found["flops"],
            step_seconds=found.get("step_seconds"),
            peak_bytes=found.get("peak_bytes"),
            together=found.get("together", 1),
            code=found.get("code", {}),
        )

    def stopped(self) -> Stopped:
        """The exception for a study that was asked to stop and has saved."""
        return Stopped(f"stopped; what was done is in {self.path}, and the same command resumes it")


class ValidationPart:
    """A corpus judged on every other validation batch: tuning uses one half, the report the other.

    Attributes:
      divided: whether there are two batches to divide; a single one is used for both halves.
    """

    def __init__(self, corpus: Any, part: str) -> None:
        self._corpus, self._first = corpus, {"tuning": 0, "report": 1}[part]
        self.divided = sum(1 for _, _ in zip(corpus.validation(), range(2))) == 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._corpus, name)

    def validation(self) -> Iterator[Any]:
        """The validation batches of this half."""
        for i, batch in enumerate(self._corpus.validation()):
            if not self.divided or i % 2 == self._first:
                yield batch


def seeded(experiment: Experiment, count: int, first: int = 0) -> list[Experiment]:
    """The same experiment with seeds first, first + 1 ...

    Raises:
      UsageError: fewer than one.
    """
    if count < 1:
        raise UsageError(f"seeds is {count}; expected at least 1, and 3 or more for an interval")
    return [dataclasses.replace(experiment, seed=seed) for seed in range(first, first + count)]


def metric_values(results: Sequence[RunResult], metric: str) -> list[float]:
    """A validation metric of the finished ones.

    Raises:
      UsageError: they have no such metric; with those they have.
    """
    finished = [result for result in results if result.status == "finished"]
    for result in finished:
        if metric not in result.validation:
            raise UsageError(f"unknown metric {metric!r}; valid are {', '.join(map(repr, result.validation))}")
    return [result.validation[metric] for result in finished]


def _variant(cell: StudyRun) -> str:
    """A key that is equal for cells that differ in the seed alone."""
    data = dataclasses.replace(cell.experiment.settled(), seed=0, name="").to_json()
    return json.dumps([data, cell.part], sort_keys=True)


def shapes(corpus: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> shape and dtype, of one batch."""
    return {name: jax.ShapeDtypeStruct(*facts) for name, facts in corpus.shapes.items()}


def _checked(line: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("validation/"): v for name, v in line.items() if name.startswith("validation/")}


def _without(sentence: str, folder: Path) -> str:
    """The reason of a divergence, without the folder: people don't know cells by their keys."""
    return sentence.replace(f" of the run in {folder}", "").split(";")[0]


@contextlib.contextmanager
def blamed_on(label: str) -> Iterator[None]:
    """Prefixes an error with the label of the item that caused it."""
    try:
        yield
    except UsageError as problem:
        raise UsageError(f"{label}: {problem}") from problem
