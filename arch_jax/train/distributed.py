"""Several processes that train one run together: how they connect, agree, and terminate together.

`jax.distributed` connects them and watches over them. Added here is how they terminate. JAX's own way, when one of them
is dead, is to abort the others from C++ with a stack trace; here each says one sentence and exits with code 1. And a
process that fails by itself tells the others why, instead of leaving them to wait for it.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from arch_jax.errors import ArchJaxError, RunError, UsageError

#: Seconds without a heartbeat before a process is declared dead.
HEARTBEAT = 30
_FAILURE = "arch_jax/failure"
#: JAX's message before it aborts a process because another one is dead.
_ABORTS = re.compile("distributed service|coordination|heartbeat", re.IGNORECASE)
#: Messages of an error that a computation raises because another process is dead.
_LOST = re.compile(
    r"gloo|nccl|coordination|heartbeat|socket closed|connection (reset|closed|refused)|another task|peer|unavailable|"
    r"barrier|deadline",
    re.IGNORECASE,
)


def leader() -> bool:
    """True if this process writes the run's files and reports; with one process, always."""
    return jax.process_index() == 0


def on_host(tree: Any) -> Any:
    """The whole of each array as numpy, also where its parts are in several processes, which then all call this."""

    def whole(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


class Votes:
    """A vote on stopping, agreed upon by all processes without making the devices wait.

    Every process casts a vote with each dispatch, and counts it where it fetches that dispatch's metrics: all count the
    same, and so stop after the same step.

    Args:
      stop: set when this process wants to stop. With one process, nothing else matters.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop, self._counted = stop, False
        self._cast: Any = False
        self._several = jax.process_count() > 1
        if self._several:
            devices = np.array(jax.devices())
            mesh = Mesh(devices, ("device",), axis_types=(jax.sharding.AxisType.Auto,))
            self._each, one = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("device",), ()))
            self._any = jax.jit(lambda flags: flags.any(), out_shardings=one)

    def cast(self) -> None:
        """Votes; in every process after the same dispatch."""
        if self._several:
            flags = np.full(jax.local_device_count(), self._stop.is_set())
            self._cast = self._any(jax.make_array_from_process_local_data(self._each, flags))

    def count(self) -> None:
        """Waits for the result of the last vote; in every process at the same point."""
        if self._several:
            self._counted = bool(self._cast)

    @property
    def stopping(self) -> bool:
        """True to stop, as last counted."""
        return self._counted if self._several else self._stop.is_set()


def agreed(name: str, value: str) -> str:
    """The first process's value; the others wait for it."""
    if jax.process_count() == 1:
        return value
    client = _client()
    if leader():
        client.key_value_set(f"arch_jax/{name}", value)
        return value
    return client.blocking_key_value_get(f"arch_jax/{name}", 600_000)


def _client() -> Any:
    """The connection to the coordinator. JAX has no public name for it; Orbax takes it from here too."""
    from jax._src import distributed

    return distributed.global_state.client


@contextlib.contextmanager
def connected(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat: int = HEARTBEAT,
    timeout: int = 300,
    quiet: bool = True,
) -> Iterator[None]:
    """Joins this process with the others for the duration of the context; to be entered before any use of a device.

    Within it, an error ends the process: with the message of the error here, or in another process, or
    one that says that another process is dead.

    Args:
      coordinator: HOST:PORT of process 0; None asks the cluster (Cloud TPU, SLURM, Open MPI, Kubernetes).
      processes: number of processes.
      process: index of this one.
      heartbeat: seconds without a heartbeat before a process is declared dead.
      timeout: seconds to wait for the others at the start.
      quiet: hides what the C++ libraries write on stdout and stderr, and shows it only if the process aborts for
        another reason than a dead process.

    Raises:
      UsageError: there is no cluster to ask.
      RunError: the others are not found.
    """
    with contextlib.ExitStack() as stack:
        # JAX's own service for SIGTERM would swallow one that comes before the train loop listens.
        jax.config.update("jax_enable_preemption_service", False)
        where = "" if coordinator is None else f" at {coordinator}"
        ending = _Ending(
            stack.enter_context(_kept_back()) if quiet else None,
            f"process {process} can't join the others{where}: not all came in {timeout} s, or one came twice",
        )
        stack.callback(ending.unwatch)
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                initialization_timeout=timeout,
                heartbeat_timeout_seconds=heartbeat,
            )
        except ValueError as problem:
            raise UsageError(
                f"--distributed finds no cluster here ({_line(problem)}); expected --coordinator HOST:PORT, "
                "--processes N and --process I"
            ) from None
        except Exception as problem:
            raise RunError(f"process {process} can't join the others{where}: {_line(problem)}") from None
        done = threading.Event()
        ending.watch(done)
        try:
            yield
        except BaseException as problem:
            ending.fail(problem)
        done.set()
        jax.distributed.shutdown()


class _Ending:
    """Termination of one of several processes: once, with one sentence.

    Args:
      kept: returns the output of the C++ libraries; None if that is shown.
      absent: the sentence for an abort before all are there.
    """

    def __init__(self, kept: Any, absent: str) -> None:
        self._kept, self._absent, self._lock = kept, absent, threading.Lock()
        self._error = sys.stderr
        self._process = self._count = 0
        # JAX calls abort() from a thread of its own, which Python's signal handlers never see: they run in the main
        # thread, which waits for the devices. Its callback for this takes a C++ status that Python can't be given.
        library = ctypes.CDLL(None)
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
        library.signal.argtypes, library.signal.restype = [ctypes.c_int, kind], ctypes.c_void_p
        self._handler = kind(self._aborted)  # kept: the library has its address only
        library.signal(signal.SIGABRT, self._handler)

    def watch(self, done: threading.Event) -> None:
        """Starts to listen to the other processes' failures, once all are there."""
        self._process, self._count = jax.process_index(), jax.process_count()
        threading.Thread(target=self._listen, args=(done,), daemon=True).start()

    def unwatch(self) -> None:
        """Restores the plain abort of a process that is alone again."""
        signal.signal(signal.SIGABRT, signal.SIG_DFL)

    def fail(self, problem: BaseException) -> NoReturn:
        """Ends this process for an error in it, and informs the others."""
        if self._kept is None:
            traceback.print_exception(problem)
        if isinstance(problem, SystemExit | KeyboardInterrupt):
            self._say_and_end("interrupted" if isinstance(problem, KeyboardInterrupt) else str(problem), 130)
        if isinstance(problem, jax.errors.JaxRuntimeError) and _LOST.search(str(problem)):
            # Perhaps one that failed and says so: its sentence is the better one, and `_listen` is about to read it.
            time.sleep(3)
            self._say_and_end(self._lost(), 1)
        if isinstance(problem, ArchJaxError):
            sentence, code = _line(problem), problem.exit_code
        else:
            sentence, code = f"{type(problem).__name__}: {_line(problem)}", 1
        with contextlib.suppress(Exception):
            _client().key_value_set(_FAILURE, f"{code} {self._process} {sentence}", allow_overwrite=False)
        self._say_and_end(sentence, code, wait=2.5 if leader() else 0.0)

    def _listen(self, done: threading.Event) -> None:
        while not done.wait(1):
            try:
                told = _client().key_value_try_get(_FAILURE)
            except Exception:  # nothing there, or nobody to ask, which JAX itself notices
                continue
            code, process, sentence = told.split(" ", 2)
            if int(process) != self._process:
                self._say_and_end(f"process {process} failed: {sentence}", int(code))
            return

    def _aborted(self, number: int) -> None:
        text = "" if self._kept is None else self._kept()
        if self._kept is None or _ABORTS.search(text):
            self._say_and_end(self._lost(), 1)
        with contextlib.suppress(Exception):
            self._error.write(text)
            self._error.flush()
        os._exit(128 + number)

    def _lost(self) -> str:
        if not self._count:
            return self._absent
        return (
            f"process {self._process} of {self._count} has lost contact with another one, which was killed or can't "
            "be reached; start all of them again to resume from the last checkpoint"
        )

    def _say_and_end(self, sentence: str, code: int, wait: float = 0.0) -> NoReturn:
        if not self._lock.acquire(blocking=False):  # another thread is at it
            time.sleep(60)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            self._error.write(f"arch-jax: {sentence}\n")
            self._error.flush()
        time.sleep(wait)  # the coordinator is in this process: the others must have read the sentence
        os._exit(code)  # an orderly end would wait for the others


@contextlib.contextmanager
def _kept_back() -> Iterator[Any]:
    """Redirects C++ output on stdout and stderr to a file, Python's own streams apart; returns its reader."""
    saved = sys.stdout, sys.stderr
    for stream in saved:
        if stream is not None:
            stream.flush()
    with tempfile.TemporaryFile() as file:
        streams = [os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8", errors="replace") for number in (1, 2)]
        copies = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = streams

        def read() -> str:
            size = os.fstat(file.fileno()).st_size
            return os.pread(file.fileno(), 100_000, max(0, size - 100_000)).decode(errors="replace")

        try:
            yield read
        finally:
            for stream in streams:
                stream.flush()
            sys.stdout, sys.stderr = saved
            for number, copy in zip((1, 2), copies):
                os.dup2(copy, number)
                os.close(copy)


def _line(problem: BaseException) -> str:
    """An exception's message, on one line of bounded length."""
    text = " ".join(str(problem).split())
    return text if len(text) <= 400 or isinstance(problem, ArchJaxError) else text[:397] + "..."
