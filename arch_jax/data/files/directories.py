"""The data folder, and atomic writes to it: no process ever sees half a file."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from arch_jax.errors import RunError, UsageError

_ADVICE = "; set ARCH_JAX_DATA to a folder that can be written"


def user_cache() -> pathlib.Path:
    """The folder "arch_jax" of the user's cache; it need not exist."""
    import platformdirs

    return pathlib.Path(platformdirs.user_cache_dir("arch_jax"))


def data_directory() -> pathlib.Path:
    """The folder that data is looked for in: `$ARCH_JAX_DATA` where set, else the user's cache folder "arch_jax".

    The folder need not exist. Each data set has a sub-folder of its own name.

    Raises:
      UsageError: `$ARCH_JAX_DATA` names something that is not a folder.
    """
    given = os.environ.get("ARCH_JAX_DATA", "")
    if not given:
        return user_cache()
    path = pathlib.Path(given).expanduser()
    if path.exists() and not path.is_dir():
        raise UsageError(f"ARCH_JAX_DATA is {given!r}, which is a file; expected a folder")
    return path


def writable_directory() -> pathlib.Path:
    """The folder that data is written to: `data_directory()`, or the user's cache folder where that is read-only."""
    path = data_directory()
    return path if _may_write(path) else user_cache()


def _may_write(path: pathlib.Path) -> bool:
    while not path.exists() and path != path.parent:
        path = path.parent
    # os.access alone lets root write into a folder that its owner marked read-only for everyone.
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK) and bool(path.stat().st_mode & 0o222)


def find(relative: str) -> pathlib.Path | None:
    """The existing file or folder `relative` under `data_directory()`, else under `writable_directory()`, else None."""
    for folder in (data_directory(), writable_directory()):
        if (folder / relative).exists():
            return folder / relative
    return None


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes a file so that any reader sees either all of it or none: into a temporary file, renamed into place.

    Raises:
      RunError: the file cannot be written (no permission, disk full).
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared cache from other users
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise RunError(f"cannot write {str(path)!r}: {error.strerror or error}{_ADVICE}") from error


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Holds the lock for writing `path` (a file `path.lock` beside it), so that only one process at a time writes it.

    Raises:
      RunError: the lock file cannot be created.
    """
    import filelock

    lock = path.with_name(path.name + ".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(lock)
        held.acquire()
    except OSError as error:
        raise RunError(f"cannot create the lock {str(lock)!r}: {error.strerror or error}{_ADVICE}") from error
    try:
        yield
    finally:
        held.release()
