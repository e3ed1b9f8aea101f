"""A lock on a study's folder: one process at a time, and its name."""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.train.workdir import reason, write


def lock_study(path: Path) -> Any:
    """The lock on a study's folder, with a note beside it that names the holder.

    Raises:
      UsageError: it can't be written to, or another process has it.
    """
    import filelock

    holder = path / ".holder"
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / ".lock")
        lock.acquire(timeout=0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write(holder, f"process {os.getpid()} on {socket.gethostname()}, since {since}")
    except filelock.Timeout:
        who = "another process"
        with contextlib.suppress(OSError):
            who = holder.read_text(encoding="utf-8").strip() or who
        raise UsageError(f"the study in {path} is held by {who}; wait for it, or choose another --workdir") from None
    except (OSError, NotImplementedError) as problem:
        raise UsageError(f"can't write to the study's folder {path}: {reason(problem)}") from None
    return lock
