"""Things for a person to look at: what can't be made costs a warning, never the run."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from arch_jax.errors import ArchJaxError
from arch_jax.figures.base import drawn
from arch_jax.train.report import save_shown
from arch_jax.train.workdir import write

#: Times that the samples of a step are begun: a second time after a kill, no third after what looks like a crash.
_ATTEMPTS = 2


def told(problem: BaseException) -> str:
    """An exception as the end of a sentence: its kind, unless it was raised on purpose, and its message on one line."""
    text = " ".join(str(problem).split())
    if isinstance(problem, ArchJaxError):
        return text
    return f"{type(problem).__name__}: {text if len(text) <= 300 else f'{text[:297]}...'}"


class Warned:
    """Warnings in the place of exceptions, each once.

    Args:
      say: takes a sentence.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said = say, set[str]()

    def failed(self, what: str, problem: Exception) -> None:
        """Warns that something failed, once for each reason."""
        sentence = f"warning: {what} failed, and is left out: {told(problem)}"
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)

    def made(self, what: str, make: Callable[[], list[Path]]) -> list[Path]:
        """The files that `make` writes; none, and a warning that names `what`, where it fails."""
        try:
            return make()
        except Exception as problem:
            self.failed(what, problem)
            return []


class Showing(Warned):
    """A run's samples and figures, drawn after the checkpoint of their step was begun.

    Args:
      folder: the run's.
      say: takes a warning.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(say)
        self._samples = folder / "samples"
        self._marker = self._samples / ".drawing"  # "STEP ATTEMPTS", while that step is drawn

    def missing(self, step: int) -> bool:
        """True if a process that was killed has left the samples of a step undrawn, or half drawn."""
        attempts = self._attempts(step)
        return attempts < _ATTEMPTS if attempts else not any(self._samples.glob(f"{_prefix(step)}_*"))

    def draw(self, step: int, figures: Iterable[Any], parts: tuple[Any, ...]) -> list[Path]:
        """Draws and writes what a run shows after a step; what fails is left out.

        Args:
          step: steps taken.
          figures: of the run.
          parts: their arguments.
        """
        attempts = self._attempts(step)
        with suppress(Exception):
            write(self._marker, f"{step} {attempts + 1}")
        shown = drawn(figures, *parts, failed=self.failed)
        files = []
        for name, thing in shown.items():
            one = {name: thing}
            files += self.made(f"writing {name!r}", lambda one=one: save_shown(self._samples, _prefix(step), one))
        with suppress(OSError):
            self._marker.unlink(missing_ok=True)
            self._samples.rmdir()  # where nothing was shown
        return files

    def _attempts(self, step: int) -> int:
        """Times that the drawing of a step was begun and not ended."""
        with suppress(OSError, ValueError):
            of, attempts = map(int, self._marker.read_text(encoding="utf-8").split())
            return attempts if of == step else 0
        return 0


def _prefix(step: int) -> str:
    return f"step_{step:07d}"
