"""Checkpoints of a run: saved atomically in the background, verified bit for bit before they are used.

Orbax writes them (its CheckpointManager: asynchronous, atomic by renaming, also over several processes). What is added
here is the proof that what is read is what was written, and what to do where it is not. DIR/<step>/ holds

  state/     the leaves of the state, one array each, named by their path (`parameters/dense/kernel`); Orbax's format
  iterator/  the data iterator's state, one file a process; Grain's format
  record/    our JSON: step, shape, dtype and checksum of every leaf, hashes of the iterator's states, metrics, and a
             hash of all that

A checkpoint that fails to verify is named, kept as DIR/damaged-<step>/ and the one before it is used. One whose record
is whole but describes other leaves belongs to another model: that is an error, never a reason to fall back.
"""

import contextlib
import errno
import functools
import json
import logging
import math
import os
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import PyTree

from arch_jax.errors import RunError, UsageError
from arch_jax.train.checksums import (
    as_asked,
    as_stored,
    checksums,
    describe,
    difference,
    digest,
    leaf_paths,
    leaf_sharding,
    no_mesh,
    seal,
    unseal,
)

_FORMAT = 1
_RECORD_FILE = "record.json"
_TEMPORARY = "*.orbax-checkpoint-tmp*"


class _Damaged(Exception):
    """This checkpoint can't be used; the message completes "checkpoint 1200 in DIR is corrupt: ..."."""


# ---------------------------------------------------------------------------------------------------------------------
# Processes, files, and what Orbax says
# ---------------------------------------------------------------------------------------------------------------------


def _gather(value: str) -> list[str]:
    """A hexadecimal digest from each process, in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    rows = multihost_utils.process_allgather(np.frombuffer(bytes.fromhex(value), np.uint8))
    return [bytes(row).hex() for row in np.asarray(rows)]


def _everywhere(fine: bool) -> bool:
    """Whether it is fine in every process: they use, or skip, a checkpoint together."""
    if jax.process_count() == 1:
        return fine
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(fine))))


def _barrier(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"arch_jax.checkpoint.{name}")


def _from_orbax(error: BaseException | None) -> bool:
    """Whether an exception passed through Orbax's code."""
    return any(
        f"{os.sep}orbax{os.sep}" in place.filename for place in traceback.extract_tb(error and error.__traceback__)
    )


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Keeps from the user what Orbax logs: each failure comes as an exception too, and is told in one sentence here."""
    error = record.exc_info[1] if record.exc_info else None
    return f"{os.sep}orbax{os.sep}" not in record.pathname and not any(map(_from_orbax, _causes(error)))


@functools.cache
def _orbax() -> Any:
    """Orbax, imported when first needed (0.4 s) and silenced."""
    import absl.logging  # noqa: F401  (it installs the logger's class, so it must come before getLogger)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import orbax.checkpoint

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_from_orbax)
    # After a failed save, TensorStore calls back into an event loop that Orbax has closed: told once, by us.
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            report(unraisable)

    sys.unraisablehook = hook
    return orbax.checkpoint


def _first_line(error: BaseException) -> str:
    """What an exception says, on one line of bounded length."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= 200 else line[:197] + "..."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _why(error: BaseException) -> str:
    """Why writing or reading failed, in words: a full disk and the like by number, or by what Orbax's text quotes."""
    known = {
        errno.ENOSPC: ("the disk is full", "No space left on device"),
        errno.EDQUOT: ("the disk quota is used up", "Disk quota exceeded"),
        errno.EFBIG: ("a file grew beyond the size allowed here", "File too large"),
        errno.EROFS: ("the file system is read-only", "Read-only file system"),
        errno.EACCES: ("permission is denied", "Permission denied"),
    }
    for cause in _causes(error):
        for number, (words, text) in known.items():
            if getattr(cause, "errno", None) == number or text in str(cause):
                return words
    return (isinstance(error, OSError) and error.strerror) or _first_line(error)


def _is_about_this_machine(error: BaseException) -> bool:
    """Whether reading failed for a reason that says nothing about the checkpoint: memory, permission, a server."""
    for cause in _causes(error):
        if isinstance(cause, MemoryError | PermissionError) or "PERMISSION_DENIED" in str(cause):
            return True
        if isinstance(cause, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(cause):
            return True
        if getattr(cause, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT):
            return True
    return False


def _pieces(target: Sharding | None, shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """The parts of an array that this process reads: all of it, or each that one of its devices holds, once."""
    if target is None:
        return [(slice(None),) * len(shape)]
    return list({str(index): index for index in target.addressable_devices_indices_map(shape).values()}.values())


# ---------------------------------------------------------------------------------------------------------------------
# The data iterator
# ---------------------------------------------------------------------------------------------------------------------


class _Frozen:
    """An iterator's state at one moment, for Grain's handler, which asks `get_state` only when it writes."""

    def __init__(self, iterator: Any):
        state = iterator.get_state()
        self.kind = "bytes" if isinstance(state, bytes) else "json"
        self.content = state if isinstance(state, bytes) else json.dumps(state, indent=4).encode()
        self.content.decode()  # Grain writes text

    def get_state(self) -> bytes:
        return self.content


class _Receiver:
    """Takes from Grain's handler the state that it read, so that it is verified before any iterator is moved."""

    content = b""

    def set_state(self, content: bytes) -> None:
        self.content = content

    def start_prefetch(self) -> None:
        pass


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
      directory: the folder; made where it is missing.
      keep: how many of the newest are kept (at least 1).
      keep_best: also keep the one whose `metrics[best]` is lowest. NaN, infinity and no metrics are never the best.
      best: the metric's name.
      log: takes one sentence for each damaged checkpoint.

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
    ):
        if keep < 1:
            raise UsageError(f"keep={keep} checkpoints leaves none to restore; expected 1 or more")
        self.directory = Path(os.path.abspath(directory))
        self._keep, self._keep_best, self._best, self._log = keep, keep_best, best, log
        self._manager: Any = None
        self._pending: int | None = None  # the step being written
        self._mine: set[int] = set()  # steps saved or restored by this object
        self._metrics: dict[int, float] = {}  # the best metric by step, while saving
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"the checkpoint folder {self.directory} can't be written: {_why(error)}") from error

    # -- what is there ------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, oldest first; whether they are whole is not looked at."""
        try:
            names = [entry.name for entry in self.directory.iterdir() if entry.is_dir()]
        except OSError as error:
            raise RunError(f"the checkpoint folder {self.directory} can't be read: {_why(error)}") from error
        return sorted(int(name) for name in names if name.isdecimal() and name.isascii() and str(int(name)) == name)

    def best_step(self) -> int | None:
        """The finished checkpoint with the lowest finite `metrics[best]` (of equal ones the newest), if any."""
        return self._best_of(self.steps(), self._read_metrics())

    @staticmethod
    def _best_of(steps: Iterable[int], metrics: Mapping[int, float]) -> int | None:
        return min((step for step in steps if step in metrics), key=lambda step: (metrics[step], -step), default=None)

    def _kept(self, steps: Iterable[int]) -> set[int]:
        """Which of the steps are kept: decided from memory alone, since it is asked while one is being written."""
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
            if _is_about_this_machine(error):
                raise
            raise _Damaged("its record is damaged") from error
        if record["format"] != _FORMAT:
            raise RunError(
                f"checkpoint {step} in {self.directory} is of format {record['format']}; this version reads {_FORMAT}"
            )
        if record["step"] != step:
            raise _Damaged(f"its record is of step {record['step']}")
        return record

    # -- saving -------------------------------------------------------------------------------------------------------

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
            frozen = None if iterator is None else _Frozen(iterator)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the data iterator's state is neither text nor JSON: {_first_line(error)}") from error
        try:
            numbers = {str(name): _number(value) for name, value in (metrics or {}).items()}
        except (TypeError, ValueError) as error:
            raise UsageError(f"a metric of step {step} is not a number: {_first_line(error)}") from error
        sums = checksums({name: leaf.array for name, leaf in leaves.items()})
        record = seal(
            {
                "format": _FORMAT,
                "step": step,
                "leaves": {name: describe(leaf, sums[name]) for name, leaf in leaves.items()},
                "iterator": None
                if frozen is None
                else {"kind": frozen.kind, "hashes": _gather(digest(frozen.content))},
                "metrics": numbers,
            }
        )
        _orbax()  # outside: a broken installation is not a failed save
        try:
            self._write(step, {name: leaf.array for name, leaf in leaves.items() if leaf.array.size}, frozen, record)
        except Exception as error:
            raise self._failed(step, error) from error
        self._mine.add(step)

    def _write(self, step: int, arrays: dict[str, Any], frozen: _Frozen | None, record: dict[str, Any]) -> None:
        arguments = _orbax().args
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
        # `force`, since Orbax would silently skip what it holds to be no later than its latest step.
        self._manager.save(step, args=arguments.Composite(**items), force=True)

    def _writer(self) -> Any:
        """Orbax's manager; made at the first save, since making it removes what a killed save left behind."""
        orbax = _orbax()
        self._metrics = self._read_metrics()
        if jax.process_index() == 0:
            steps = self.steps()
            # Killed while writing, or between finishing a checkpoint and deleting the one it replaces.
            stale = [self.directory / str(step) for step in set(steps) - self._kept(steps)]
            for path in [*self.directory.glob(_TEMPORARY), *stale]:
                shutil.rmtree(path, ignore_errors=True)
        _barrier("clean")
        registry = orbax.handlers.DefaultCheckpointHandlerRegistry()
        # Uncompressed: trained weights are noise to a compressor (8 % saved), and its time is the training's.
        for name, handler, save, restore in (
            ("state", orbax.PyTreeCheckpointHandler(use_compression=False), "PyTreeSave", "PyTreeRestore"),
            ("record", orbax.JsonCheckpointHandler(_RECORD_FILE), "JsonSave", "JsonRestore"),
        ):
            registry.add(name, getattr(orbax.args, save), handler)
            registry.add(name, getattr(orbax.args, restore), handler)
        return orbax.CheckpointManager(
            self.directory,
            options=orbax.CheckpointManagerOptions(
                preservation_policy=_Keep(self),
                # Reading each step's files at construction is where a damaged one would break it.
                lightweight_initialize=True,
                # Created in the background, a folder that can't be made leaves the writers waiting 20 minutes for it.
                async_options=orbax.options.AsyncOptions(create_directories_asynchronously=False),
            ),
            handler_registry=registry,
        )

    def _failed(self, step: int, error: Exception) -> RunError:
        """Gives up a save: frees what it wrote, forgets the manager that failed, and says what is still there."""
        self._pending = None
        self._let_go()
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
        return RunError(f"checkpoint {step} could not be written to {self.directory}: {_why(error)}; {rest}")

    def wait(self) -> None:
        """Returns when what was saved is on the disk.

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
        """Waits, and lets go of Orbax's threads. Raises as `wait` does."""
        self.wait()
        self._let_go()

    def _let_go(self) -> None:
        """Forgets Orbax's manager; the next save makes another."""
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(Exception):  # a failed save was told by `wait`
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
            self._log(str(failed))  # the error on its way out is the one to see

    # -- restoring ----------------------------------------------------------------------------------------------------

    def restore(
        self, abstract_state: PyTree, iterator: Any = None, *, step: int | None = None
    ) -> tuple[int, PyTree] | None:
        """The newest checkpoint that verifies, bit for bit.

        A damaged one is named through `log`, renamed to `damaged-<step>` once an older one was restored, and skipped.

        Args:
          abstract_state: the state's structure, as `jax.eval_shape` gives it. A leaf's sharding is where it goes; one
            without becomes an uncommitted array on the default device. Leaves of numpy or Python stay such.
          iterator: moved to where it was saved; None leaves the data aside.
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
            except _Damaged as error:
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
            self._set_aside(damaged)
            self._mine.add(candidate)
            return candidate, jax.tree_util.tree_unflatten(structure, restored)
        if damaged:
            named = ", ".join(f"checkpoint {number} ({why})" for number, why in damaged.items())
            raise RunError(f"no checkpoint in {self.directory} is whole: {named}")
        return None

    def _read(self, step: int, leaves: dict[str, Any], with_iterator: bool) -> tuple[list[Any], Any]:
        """The leaves and the iterator's state of one checkpoint, verified; _Damaged where that is not possible."""
        here = f"checkpoint {step} in {self.directory}"
        problem: Exception | None = None
        stored: dict[str, Any] = {}
        content: Any = None
        try:
            record = self._record(step)
            differs = difference(record["leaves"], {name: as_stored(name, leaf) for name, leaf in leaves.items()})
            if differs is not None:
                raise RunError(f"{here} belongs to another model: {differs}")
            if with_iterator:
                content = self._read_iterator(step, record["iterator"])
            stored = self._read_arrays(step, leaves, record["leaves"])
        except (RunError, _Damaged) as error:
            problem = error
        except Exception as error:
            if _is_about_this_machine(error):
                problem = RunError(f"{here} can't be read: {_why(error)}")
            else:
                problem = _Damaged(f"it can't be read ({_first_line(error)})")
            problem.__cause__ = error
        # The sums below are computed by all processes together, so all must have come this far.
        whole = _everywhere(problem is None)
        if problem is not None:
            raise problem
        if not whole:
            raise _Damaged("another process can't read it")
        sums = checksums(stored)
        for name, entry in record["leaves"].items():
            if sums[name] != entry["checksum"]:
                raise _Damaged(f"{name} does not match its checksum")
        return [as_asked(leaf, stored[name]) for name, leaf in leaves.items()], content

    def _read_arrays(self, step: int, leaves: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
        """The stored arrays, on their devices, not yet verified.

        Read with TensorStore, as Orbax does itself. Orbax's reading needs five more files whole, allocates whatever
        shape they claim, and after a failure leaves callbacks that print tracebacks from a closed event loop.
        """
        import tensorstore

        state = {"driver": "file", "path": f"{self.directory / str(step) / 'state'}/"}
        context = tensorstore.Context()
        opening = {
            name: tensorstore.open(
                {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": state, "path": f"{name}/"}},
                open=True,
                read=True,
                context=context,
            )
            for name, entry in entries.items()
            if 0 not in entry["shape"]
        }
        stores = {name: future.result() for name, future in opening.items()}
        for name, store in stores.items():
            # Before anything is allocated: a flipped digit turns a shape, or a chunk's, into terabytes.
            shape, dtype = tuple(entries[name]["shape"]), jnp.dtype(entries[name]["dtype"])
            chunk = store.chunk_layout.read_chunk.shape or ()
            if (
                store.shape != shape
                or store.dtype.numpy_dtype != dtype
                or any(part > whole for part, whole in zip(chunk, shape, strict=True))
            ):
                raise _Damaged(
                    f"{name} is stored as {store.dtype.name}{list(store.shape)}, not {dtype.name}{list(shape)}"
                )
        targets = {name: None if entries[name]["host"] else leaf_sharding(leaves[name]) for name in stores}
        # All reads are under way before the first is waited for; each piece of a sharded array is read once a process.
        reading = {
            name: {str(index): store[index].read() for index in _pieces(targets[name], store.shape)}
            for name, store in stores.items()
        }
        stored: dict[str, Any] = {}
        with no_mesh():
            for name, entry in entries.items():
                pieces, target = reading.pop(name, None), targets.get(name)
                if pieces is None:
                    array = np.zeros(entry["shape"], jnp.dtype(entry["dtype"]))
                elif target is None:
                    (piece,) = pieces.values()
                    array = piece.result()
                else:
                    stored[name] = jax.make_array_from_callback(
                        stores[name].shape, target, lambda index, pieces=pieces: pieces[str(index)].result()
                    )
                    continue
                # Copied: a device array that borrows numpy's memory can't be donated.
                stored[name] = array if entry["host"] else jnp.array(array, copy=True)
        return stored

    def _read_iterator(self, step: int, entry: Mapping[str, Any] | None) -> Any:
        """The verified state of this process's iterator."""
        here = f"checkpoint {step} in {self.directory}"
        if entry is None:
            raise RunError(f"{here} was saved without a data iterator, and this run has one")
        if len(entry["hashes"]) != jax.process_count():
            raise RunError(
                f"{here} holds the data iterators of {len(entry['hashes'])} processes, and this run has "
                f"{jax.process_count()}"
            )
        import grain
        from etils import epath

        _orbax()
        receiver = _Receiver()
        grain.checkpoint.CheckpointHandler().restore(
            epath.Path(self.directory / str(step) / "iterator"), args=grain.checkpoint.CheckpointRestore(receiver)
        )
        if digest(receiver.content) != entry["hashes"][jax.process_index()]:
            raise _Damaged("the data iterator's state does not match its hash")
        return receiver.content if entry["kind"] == "bytes" else json.loads(receiver.content)

    def _move(self, step: int, iterator: Any, content: Any) -> None:
        try:
            iterator.set_state(content)
            if hasattr(iterator, "start_prefetch"):
                iterator.start_prefetch()
        except Exception as error:
            raise RunError(
                f"checkpoint {step} in {self.directory} belongs to another data pipeline: {_first_line(error)}"
            ) from error

    def _set_aside(self, damaged: Iterable[int]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again and a person can look at them."""
        if jax.process_index() == 0:
            for step in damaged:
                names = (f"damaged-{step}" + (f"-{number}" if number else "") for number in range(1000))
                target = next(self.directory / name for name in names if not (self.directory / name).exists())
                try:
                    (self.directory / str(step)).rename(target)
                except OSError as error:
                    self._log(f"checkpoint {step} in {self.directory} is corrupt and can't be renamed: {_why(error)}")
        if damaged:
            _barrier("set_aside")
            # It refuses steps that it believes to be there; its own reload reads files that may be damaged too.
            self._let_go()
