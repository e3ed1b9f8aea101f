"""Checkpoints of a run: saved atomically in the background, verified bit for bit before they are used.

Orbax writes them (its CheckpointManager: asynchronous, atomic by renaming, also over several processes). Added here
are the proof that what is read is what was written, and the recovery if it is not. DIR/<step>/ holds

  state/     the leaves of the state, one array each, named by their path (`parameters/dense/kernel`); Orbax's format
  iterator/  the data iterator's state, one file a process; Grain's format
  record/    our JSON: step, shape, dtype and checksum of every leaf, hashes of the iterator's states, metrics, and a
             hash of all that

A checkpoint that fails to verify is named, kept as DIR/damaged-<step>/ and the one before it is used. One whose record
is whole but describes other leaves belongs to another model: that is an error, never a reason to fall back.
"""

import contextlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from jaxtyping import PyTree

from arch_jax.errors import RunError, UsageError
from arch_jax.train.checkpointing.checksums import (
    as_asked,
    as_stored,
    checksums,
    describe_leaves,
    digest,
    leaf_difference,
    leaf_paths,
    leaf_sharding,
    of_earlier_versions,
    seal,
    unseal,
)
from arch_jax.train.checkpointing.storage import (
    Damaged,
    IteratorState,
    barrier,
    everywhere,
    first_line,
    gather,
    is_about_this_machine,
    orbax,
    read_arrays,
    read_iterator,
    set_aside,
    why,
)

_FORMAT = 1
_RECORD_FILE = "record.json"
_TEMPORARY = "*.orbax-checkpoint-tmp*"


def _number(value: Any) -> float | str:
    """A metric for JSON, which knows no infinities: those and NaN as text."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


class _Keep:
    """Orbax's preservation policy: the newest `keep`, and the best. Ours, since it must not trust files.

    Orbax's BestN sorts NaN anywhere, counts every checkpoint without metrics as one to keep, and learns the metrics
    of an earlier run from a file that, when damaged, makes the manager's constructor fail.
    """

    def __init__(self, checkpoints: "Checkpoints"):
        self.checkpoints = checkpoints

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        kept = self.checkpoints._kept([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]


class Checkpoints:
    """The checkpoints of one run, in DIR/<step>/: state and data iterator together, newest N and best kept.

    Saving returns as soon as the state is copied to the host: its buffers may be donated to the next step. Restoring
    gives the bits that were saved or says why not. Several processes call every method together. Reading alone (no
    `save`) changes nothing in the folder, but for renaming a damaged checkpoint at a fall back.

    Args:
      directory: the folder; created if missing.
      keep: the number of newest checkpoints kept (at least 1).
      keep_best: also keep the one whose `metrics[best]` is lowest. NaN, infinity and no metrics are never the best.
      best: the metric's name.
      log: called with one sentence for each damaged checkpoint.
      reading: nothing will be saved: the folder need not be writable, and is not made.

    Raises:
      RunError: the folder can't be made or written.
      UsageError: `keep` is less than 1.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        keep: int = 2,
        keep_best: bool = True,
        best: str = "loss",
        log: Callable[[str], Any] = print,
        reading: bool = False,
    ):
        if keep < 1:
            raise UsageError(f"keep={keep} checkpoints leaves none to restore; expected 1 or more")
        self.directory = Path(os.path.abspath(directory))
        self._keep, self._keep_best, self._best, self._log = keep, keep_best, best, log
        self._manager: Any = None
        self._pending: int | None = None  # the step being written
        self._mine: set[int] = set()  # steps saved or restored by this object
        self._metrics: dict[int, float] = {}  # the best metric by step, while saving
        self._reading = reading
        if reading:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"the checkpoint folder {self.directory} can't be written: {why(error)}") from error

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, oldest first; they are not verified."""
        if self._reading and not self.directory.exists():
            return []
        try:
            names = [entry.name for entry in self.directory.iterdir() if entry.is_dir()]
        except OSError as error:
            raise RunError(f"the checkpoint folder {self.directory} can't be read: {why(error)}") from error
        return sorted(int(name) for name in names if name.isdecimal() and name.isascii() and str(int(name)) == name)

    def best_step(self) -> int | None:
        """The finished checkpoint with the lowest finite `metrics[best]` (of equal ones the newest), if any."""
        return self._best_of(self.steps(), self._read_metrics())

    @staticmethod
    def _best_of(steps: Iterable[int], metrics: Mapping[int, float]) -> int | None:
        return min((step for step in steps if step in metrics), key=lambda step: (metrics[step], -step), default=None)

    def _kept(self, steps: Iterable[int]) -> set[int]:
        """The steps to keep: decided from memory alone, since it is asked while one is being written."""
        ordered = sorted(steps)
        kept = set(ordered[-self._keep :])
        best = self._best_of(ordered, self._metrics) if self._keep_best else None
        return kept if best is None else kept | {best}

    def _read_metrics(self) -> dict[int, float]:
        """The finite values of `metrics[best]` by step, from the records that can be read."""
        metrics = {}
        for step in self.steps():
            try:
                value = float(self._record(step)["metrics"].get(self._best, math.nan))
            except Exception:  # what can't be read can't be the best; restoring says why
                continue
            if math.isfinite(value):
                metrics[step] = value
        return metrics

    def _record(self, step: int) -> dict[str, Any]:
        try:
            record = unseal((self.directory / str(step) / "record" / _RECORD_FILE).read_text())
        except Exception as error:
            if is_about_this_machine(error):
                raise
            raise Damaged("its record is damaged") from error
        if record["format"] != _FORMAT:
            raise RunError(
                f"checkpoint {step} in {self.directory} is of format {record['format']}; this version reads {_FORMAT}"
            )
        if record["step"] != step:
            raise Damaged(f"its record is of step {record['step']}")
        return record

    def save(self, step: int, state: PyTree, iterator: Any = None, metrics: Mapping[str, Any] | None = None) -> None:
        """Saves in the background; returns when the state may be donated.

        Saving a step again that this object saved or restored does nothing.

        Args:
          step: later than every checkpoint that is there.
          state: a tree of arrays of jax (any sharding, typed keys), arrays and scalars of numpy, Python numbers.
          iterator: a Grain iterator, or anything whose `get_state()` gives bytes of text or what JSON can hold. Its
            state of this moment is what is saved.
          metrics: numbers of this step, kept in the record; `metrics[best]` decides what is kept.

        Raises:
          RunError: this save could not start, or the one before it failed; the folder holds a later checkpoint.
          UsageError: a leaf, a metric or the iterator's state can't be stored.
        """
        step = int(step)
        self.wait()
        there = self.steps()
        if step in there and step in self._mine:
            return
        if there and step <= there[-1]:
            raise RunError(
                f"checkpoint {step} can't be saved in {self.directory}: checkpoint {there[-1]} is there, of a run that "
                "went further; move the later ones away first"
            )
        leaves = {name: as_stored(name, leaf) for name, leaf in leaf_paths(state)[0].items()}
        try:
            frozen = None if iterator is None else IteratorState(iterator)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the data iterator's state is neither text nor JSON: {first_line(error)}") from error
        try:
            numbers = {str(name): _number(value) for name, value in (metrics or {}).items()}
        except (TypeError, ValueError) as error:
            raise UsageError(f"a metric of step {step} is not a number: {first_line(error)}") from error
        sums = checksums({name: leaf.array for name, leaf in leaves.items()})
        record = seal(
            {
                "format": _FORMAT,
                "step": step,
                "leaves": {name: describe_leaves(leaf, sums[name]) for name, leaf in leaves.items()},
                "iterator": None if frozen is None else {"kind": frozen.kind, "hashes": gather(digest(frozen.content))},
                "metrics": numbers,
            }
        )
        orbax()  # outside: a broken installation is not a failed save
        try:
            self._write(step, {name: leaf.array for name, leaf in leaves.items() if leaf.array.size}, frozen, record)
        except Exception as error:
            raise self._failed(step, error) from error
        self._mine.add(step)

    def _write(self, step: int, arrays: dict[str, Any], frozen: IteratorState | None, record: dict[str, Any]) -> None:
        arguments = orbax().args
        if self._manager is None:
            self._manager = self._writer()
        self._metrics.pop(step, None)
        value = float(record["metrics"].get(self._best, math.nan))
        if math.isfinite(value):
            self._metrics[step] = value
        items = {"record": arguments.JsonSave(record)}
        if arrays:  # Orbax refuses empty arrays and empty trees: those live in the record alone
            items["state"] = arguments.PyTreeSave(arrays)
        if frozen is not None:
            import grain

            items["iterator"] = grain.checkpoint.CheckpointSave(frozen)
        self._pending = step
        # `force`, since Orbax would silently skip a step that it believes to be no later than its latest one.
        self._manager.save(step, args=arguments.Composite(**items), force=True)

    def _writer(self) -> Any:
        """Orbax's manager; created at the first save, since creating it removes the leftovers of a killed save."""
        library = orbax()
        self._metrics = self._read_metrics()
        if jax.process_index() == 0:
            steps = self.steps()
            # Killed while writing, or between finishing a checkpoint and deleting the one it replaces.
            stale = [self.directory / str(step) for step in set(steps) - self._kept(steps)]
            for path in [*self.directory.glob(_TEMPORARY), *stale]:
                shutil.rmtree(path, ignore_errors=True)
        barrier("clean")
        registry = library.handlers.DefaultCheckpointHandlerRegistry()
        # Uncompressed: trained weights are incompressible (8 % saved), and the compressor takes time from training.
        for name, handler, save, restore in (
            ("state", library.PyTreeCheckpointHandler(use_compression=False), "PyTreeSave", "PyTreeRestore"),
            ("record", library.JsonCheckpointHandler(_RECORD_FILE), "JsonSave", "JsonRestore"),
        ):
            registry.add(name, getattr(library.args, save), handler)
            registry.add(name, getattr(library.args, restore), handler)
        return library.CheckpointManager(
            self.directory,
            options=library.CheckpointManagerOptions(
                preservation_policy=_Keep(self),
                # Reading each step's files at construction is where a damaged one would break it.
                lightweight_initialize=True,
                # Created in the background, a folder that can't be made leaves the writers waiting 20 minutes for it.
                async_options=library.options.AsyncOptions(create_directories_asynchronously=False),
            ),
            handler_registry=registry,
        )

    def _failed(self, step: int, error: Exception) -> RunError:
        """Aborts a save: frees what it wrote, drops the manager that failed, and says which checkpoints are intact."""
        self._pending = None
        self._let_go()
        # Orbax leaves the writes behind that the failed one kept from beginning; Python would tell of each at its end.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        if jax.process_index() == 0:
            # A writer that is still at it may add a file while its folder is being removed.
            for _ in range(20):
                left = list(self.directory.glob(f"{step}{_TEMPORARY[1:]}"))
                for path in left:
                    shutil.rmtree(path, ignore_errors=True)
                if not any(path.exists() for path in left):
                    break
                time.sleep(0.05)
        before: list[int] = []
        with contextlib.suppress(RunError):
            before = [other for other in self.steps() if other != step]
        rest = f"checkpoint {before[-1]} before it is intact" if before else "there is none before it"
        return RunError(f"checkpoint {step} could not be written to {self.directory}: {why(error)}; {rest}")

    def wait(self) -> None:
        """Returns when the saved checkpoint is on disk.

        Raises:
          RunError: it failed (a full disk, for example); the checkpoint before it is as it was.
        """
        if self._manager is None or self._pending is None:
            return
        step = self._pending
        try:
            self._manager.wait_until_finished()
            if not (self.directory / str(step)).is_dir():
                raise FileNotFoundError(f"{self.directory / str(step)} is missing")
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = None

    def close(self) -> None:
        """Waits, and stops Orbax's threads. Raises as `wait` does."""
        self.wait()
        self._let_go()

    def _let_go(self) -> None:
        """Drops Orbax's manager; the next save makes another."""
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(Exception):  # a failed save was reported by `wait`
                manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RunError as failed:
            if error is None:
                raise
            self._log(str(failed))  # the error on its way out is the one to show

    def restore(
        self, abstract_state: PyTree, iterator: Any = None, *, step: int | None = None
    ) -> tuple[int, PyTree] | None:
        """The newest checkpoint that verifies, bit for bit.

        A damaged one is named through `log`, renamed to `damaged-<step>` once an older one was restored, and skipped.

        Args:
          abstract_state: the state's structure, as `jax.eval_shape` gives it. A leaf's sharding is where it goes; one
            without becomes an uncommitted array on the default device. Leaves of numpy or Python stay such.
          iterator: moved to where it was saved; None ignores the data.
          step: this checkpoint and no other.

        Returns:
          (step, state), or None where there is no checkpoint.

        Raises:
          RunError: checkpoints are there and none is whole (all are named, none is renamed); the checkpoint belongs to
            another model or another data pipeline; `step` is not there or damaged; it can't be read here (memory,
            permission).
        """
        self.wait()
        leaves, structure = leaf_paths(abstract_state)
        candidates = self.steps()[::-1]
        if step is not None and step not in candidates:
            have = ", ".join(map(str, candidates[::-1])) or "none"
            raise RunError(f"checkpoint {step} is not in {self.directory}; there: {have}")
        if step is not None:
            candidates = [int(step)]
        damaged: dict[int, str] = {}
        for place, candidate in enumerate(candidates):
            try:
                restored, content = self._read(candidate, leaves, iterator is not None)
            except Damaged as error:
                if not (self.directory / str(candidate)).is_dir():
                    continue  # the run that owns the folder deleted it in the meantime
                damaged[candidate] = str(error)
                sentence = f"checkpoint {candidate} in {self.directory} is corrupt: {error}"
                if step is not None:
                    raise RunError(sentence) from error
                following = candidates[place + 1 : place + 2]
                self._log(sentence + "".join(f"; going back to checkpoint {other}" for other in following))
                continue
            if iterator is not None:
                self._move(candidate, iterator, content)
            set_aside(self.directory, damaged, self._log)
            if damaged:  # Orbax refuses steps that it believes to be there, and its own reload reads damaged files too
                self._let_go()
            self._mine.add(candidate)
            return candidate, jax.tree_util.tree_unflatten(structure, restored)
        if damaged:
            named = ", ".join(f"checkpoint {number} ({why})" for number, why in damaged.items())
            raise RunError(f"no checkpoint in {self.directory} is whole: {named}")
        return None

    def _read(self, step: int, leaves: dict[str, Any], with_iterator: bool) -> tuple[list[Any], Any]:
        """The leaves and the iterator's state of one checkpoint, verified; raises Damaged if that is not possible."""
        here = f"checkpoint {step} in {self.directory}"
        problem: Exception | None = None
        stored: dict[str, Any] = {}
        content: Any = None
        try:
            record = self._record(step)
            elsewhere = of_earlier_versions(record["leaves"], leaves)
            own = {name: leaf for name, leaf in leaves.items() if name not in elsewhere}
            differs = leaf_difference(record["leaves"], {name: as_stored(name, leaf) for name, leaf in own.items()})
            if differs is not None:
                raise RunError(f"{here} belongs to another model: {differs}")
            if with_iterator:
                content = self._read_iterator(step, record["iterator"])
            stored = self._read_arrays(step, own, record["leaves"])
        except (RunError, Damaged) as error:
            problem = error
        except Exception as error:
            if is_about_this_machine(error):
                problem = RunError(f"{here} can't be read: {why(error)}")
            else:
                problem = Damaged(f"it can't be read ({first_line(error)})")
            problem.__cause__ = error
        # The sums below are computed by all processes together, so all must have come this far.
        whole = everywhere(problem is None)
        if problem is not None:
            raise problem
        if not whole:
            raise Damaged("another process can't read it")
        sums = checksums(stored)
        for name, entry in record["leaves"].items():
            if sums[name] != entry["checksum"]:
                raise Damaged(f"{name} does not match its checksum")
        return [as_asked(leaf, stored[elsewhere.get(name, name)]) for name, leaf in leaves.items()], content

    def _read_arrays(self, step: int, leaves: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
        targets = {name: None if entries[name]["host"] else leaf_sharding(leaf) for name, leaf in leaves.items()}
        return read_arrays(self.directory / str(step) / "state", entries, targets)

    def _read_iterator(self, step: int, entry: Mapping[str, Any] | None) -> Any:
        """The verified state of this process's iterator."""
        here = f"checkpoint {step} in {self.directory}"
        if entry is None:
            raise RunError(f"{here} was saved without a data iterator, and this run has one")
        if len(entry["hashes"]) != jax.process_count():
            raise RunError(
                f"{here} holds the data iterators of {len(entry['hashes'])} processes, and this run has "
                f"{jax.process_count()}; expected as many, since each process resumes its own rows"
            )
        content = read_iterator(self.directory / str(step) / "iterator")
        if digest(content) != entry["hashes"][jax.process_index()]:
            raise Damaged("the data iterator's state does not match its hash")
        return content if entry["kind"] == "bytes" else json.loads(content)

    def _move(self, step: int, iterator: Any, content: Any) -> None:
        try:
            iterator.set_state(content)
            if hasattr(iterator, "start_prefetch"):
                iterator.start_prefetch()
        except Exception as error:
            raise RunError(
                f"checkpoint {step} in {self.directory} belongs to another data pipeline: {first_line(error)}"
            ) from error
