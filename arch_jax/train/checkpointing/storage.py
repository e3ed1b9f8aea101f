"""Reading and writing the parts of a checkpoint with Orbax, Grain and TensorStore, and explaining their failures."""

import errno
import functools
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from arch_jax.train.checkpointing.checksums import no_mesh


class Damaged(Exception):
    """This checkpoint can't be used; the message completes "checkpoint 1200 in DIR is corrupt: ..."."""


def gather(value: str) -> list[str]:
    """A hexadecimal digest from each process, in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    rows = multihost_utils.process_allgather(np.frombuffer(bytes.fromhex(value), np.uint8))
    return [bytes(row).hex() for row in np.asarray(rows)]


def everywhere(fine: bool) -> bool:
    """True if every process succeeded: they use, or skip, a checkpoint together."""
    if jax.process_count() == 1:
        return fine
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(fine))))


def barrier(name: str) -> None:
    """Returns when all processes have arrived here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"arch_jax.checkpoint.{name}")


def _from_orbax(error: BaseException | None) -> bool:
    """True if an exception passed through Orbax's code."""
    return any(
        f"{os.sep}orbax{os.sep}" in place.filename for place in traceback.extract_tb(error and error.__traceback__)
    )


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Hides Orbax's logs from the user: each failure is an exception too, and reported in one sentence here."""
    error = record.exc_info[1] if record.exc_info else None
    return f"{os.sep}orbax{os.sep}" not in record.pathname and not any(map(_from_orbax, _causes(error)))


@functools.cache
def orbax() -> Any:
    """Orbax, imported when first needed (0.4 s) and silenced."""
    import absl.logging  # noqa: F401  (it installs the logger's class, so it must come before getLogger)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import orbax.checkpoint as library

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_from_orbax)
    # After a failed save, TensorStore calls back into an event loop that Orbax has closed: reported once, by us.
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            report(unraisable)

    sys.unraisablehook = hook
    return library


def first_line(error: BaseException) -> str:
    """An exception's message, on one line of bounded length."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= 200 else line[:197] + "..."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def why(error: BaseException) -> str:
    """The reason of a failed write or read: a full disk and the like by number, or by what Orbax's text quotes."""
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
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


def is_about_this_machine(error: BaseException) -> bool:
    """True if reading failed for a reason that says nothing about the checkpoint: memory, permission, a server."""
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


class IteratorState:
    """An iterator's state at one moment, for Grain's handler, which asks `get_state` only when it writes."""

    def __init__(self, iterator: Any):
        state = iterator.get_state()
        self.kind = "bytes" if isinstance(state, bytes) else "json"
        self.content = state if isinstance(state, bytes) else json.dumps(state, indent=4).encode()
        self.content.decode()  # Grain writes text

    def get_state(self) -> bytes:
        return self.content


class Receiver:
    """Takes from Grain's handler the state that it read, so that it is verified before any iterator is moved."""

    content = b""

    def set_state(self, content: bytes) -> None:
        self.content = content

    def start_prefetch(self) -> None:
        pass


def read_arrays(folder: Path, entries: Mapping[str, Any], targets: Mapping[str, Sharding | None]) -> dict[str, Any]:
    """The arrays of a checkpoint's `state` folder, on their devices, not yet verified.

    Read with TensorStore, as Orbax does itself. Orbax's reading needs five more files whole, allocates whatever
    shape they claim, and after a failure leaves callbacks that print tracebacks from a closed event loop.

    Args:
      folder: written by Orbax.
      entries: name -> what the record says: shape, dtype, and whether it stays on the host.
      targets: name -> the sharding it goes to; None for an uncommitted array, or one on the host.

    Raises:
      Damaged: what is stored has another shape or dtype than the record says.
    """
    import tensorstore

    state = {"driver": "file", "path": f"{folder}/"}
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
            raise Damaged(f"{name} is stored as {store.dtype.name}{list(store.shape)}, not {dtype.name}{list(shape)}")
    # All reads are under way before the first is waited for; each piece of a sharded array is read once a process.
    reading = {
        name: {str(index): store[index].read() for index in _pieces(targets[name], store.shape)}
        for name, store in stores.items()
    }
    stored: dict[str, Any] = {}
    with no_mesh():
        for name, entry in entries.items():
            pieces, target = reading.pop(name, None), targets[name]
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


def read_iterator(folder: Path) -> bytes:
    """This process's iterator state, read by Grain's handler from an `iterator` folder; not yet verified."""
    import grain
    from etils import epath

    orbax()
    receiver = Receiver()
    grain.checkpoint.CheckpointHandler().restore(epath.Path(folder), args=grain.checkpoint.CheckpointRestore(receiver))
    return receiver.content


def set_aside(directory: Path, damaged: Collection[int], log: Callable[[str], Any]) -> None:
    """Renames damaged checkpoints to `damaged-<step>`: their steps can be saved again, and the files inspected."""
    if jax.process_index() == 0:
        for step in damaged:
            names = (f"damaged-{step}" + (f"-{number}" if number else "") for number in range(1000))
            target = next(directory / name for name in names if not (directory / name).exists())
            try:
                (directory / str(step)).rename(target)
            except OSError as error:
                log(f"checkpoint {step} in {directory} is corrupt and can't be renamed: {why(error)}")
    if damaged:
        barrier("set_aside")
