"""The one place that prints: results on standard output, and on standard error what goes on.

Whoever reads may be gone, or know fewer characters than are printed; neither ends what is under way. A reader that has
gone (`arch-jax list | head`), a terminal that was hung up and a stream that was never open take nothing more, and what
an encoding lacks is written as `\\u` and its number.
"""

import errno
import io
import os
import sys
from typing import Any

#: What the system says of a stream whose reader is gone: a pipe, a terminal, the descriptor itself.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


class Stream(io.TextIOBase):
    """Standard output or error, whichever object that is at the moment.

    Args:
      name: "stdout" or "stderr".
      optional: whether any failure to write is as good as a reader that is gone; otherwise a full disk, say, is an
        error of whoever prints.
      beneath: whether what a progress bar of rich puts in the stream's place, to print above itself, is passed by.
    """

    def __init__(self, name: str, optional: bool = False, beneath: bool = False) -> None:
        self._name, self._optional, self._beneath = name, optional, beneath

    @property
    def _stream(self) -> Any:
        stream = getattr(sys, self._name)
        while self._beneath and hasattr(stream, "rich_proxied_file"):
            stream = stream.rich_proxied_file
        return stream

    @property
    def encoding(self) -> str:
        """That of the stream, by which rich chooses between lines and letters."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """True for a terminal."""
        try:
            return self._stream.isatty()
        except (AttributeError, ValueError, OSError):  # none, or one that is closed
            return False

    def fileno(self) -> int:
        """The descriptor, by which rich asks a terminal for its width."""
        try:
            return self._stream.fileno()
        except (AttributeError, ValueError) as problem:
            raise OSError(errno.EBADF, str(problem)) from None

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, text: str) -> int:
        """Writes as much of a text as there is a reader and a letter for."""
        stream = self._stream
        if stream is not None:
            try:
                try:
                    stream.write(text)
                except UnicodeEncodeError:
                    stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except (OSError, ValueError) as problem:
                self._failed(problem)
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        stream = self._stream
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError) as problem:
                self._failed(problem)

    def _failed(self, problem: Exception) -> None:
        """Goes on without the stream, where that is right."""
        gone = isinstance(problem, ValueError) or problem.errno in _GONE  # a ValueError: the object was closed
        if not gone and not self._optional:
            raise problem
        # What is buffered would fail again when the process ends, and be its exit code.
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        except OSError:
            pass


class Console:
    """Prints for all of the package.

    Attributes:
      results: standard output.
      notes: standard error.
    """

    def __init__(self) -> None:
        self.results, self.notes = Stream("stdout"), Stream("stderr", optional=True)
        self._beneath = Stream("stdout", beneath=True), Stream("stderr", optional=True, beneath=True)

    def print(self, text: str) -> None:
        """A line of results."""
        self.results.write(f"{text}\n")
        self.results.flush()

    def tell(self, sentence: str) -> None:
        """A line about what goes on, as opposed to results."""
        self.notes.write(f"{sentence}\n")
        self.notes.flush()

    def rich(self, notes: bool = False, **options: Any) -> Any:
        """A console of rich, for tables and progress bars.

        Args:
          notes: on standard error instead of output.
          **options: of `rich.console.Console`, such as width=240.
        """
        from rich.console import Console as Rich

        return Rich(file=self._beneath[notes], **options)

    def open(self) -> None:
        """Gives a process that was started without some of its streams (`>&-`) others that lead nowhere.

        Otherwise the next file that it opens is its standard output, and gets what C++ libraries print.
        """
        for number in (0, 1, 2):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))


console = Console()
