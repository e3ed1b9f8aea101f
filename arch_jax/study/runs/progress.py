"""One progress bar for a whole study, with the time left."""

import contextlib
import time
from types import TracebackType
from typing import Any

from arch_jax.console import console


class StudyProgress:
    """The current run, its loss, and the time left for all: a bar on a terminal, a line now and then elsewhere.

    Args:
      total: steps of all runs.
      cells: the number of runs.
      every: seconds between plain lines.
    """

    def __init__(self, total: int, cells: int, every: float = 10.0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.total, self.cells, self.every = total, cells, every
        self.console = console.rich(notes=True)
        self._done = self._begun = 0  # steps of ended runs, and runs begun
        self._skipped = 0  # steps that count as done but were not taken here
        self._started = self._spoke = time.perf_counter()
        self._bar = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TextColumn("{task.fields[left]}"),
            )
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("study", total=total, loss="-", left="")

    def __enter__(self) -> "StudyProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def cell(self, label: str, steps: int, count: int = 1) -> "CellProgress":
        """The progress of the next run, or of `count` runs that are trained as one."""
        self._begun += count
        return CellProgress(self, f"cell {self._begun}/{self.cells} ({label})", steps, count)

    def left(self, done: int) -> str:
        """The remaining time at the pace so far, compilations included."""
        taken = done - self._skipped
        if taken <= 0:
            return ""
        seconds = (time.perf_counter() - self._started) / taken * (self.total - done)
        return f"{seconds:.0f} s left" if seconds < 120 else f"{seconds / 60:.0f} min left"

    def show(self, label: str, done: int, step: int, steps: int, loss: float | None) -> None:
        """Reports the study's progress."""
        shown = "-" if loss is None else f"{loss:.4f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=label, loss=shown, left=self.left(done))
        elif time.perf_counter() - self._spoke > self.every:
            self._spoke = time.perf_counter()
            line = f"{label}  step {step}/{steps}  loss {shown}  {self.left(done)}"
            self.console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)


class CellProgress(contextlib.AbstractContextManager):
    """One run's part of the bar; the train loop's interface to it."""

    def __init__(self, study: StudyProgress, label: str, steps: int, count: int) -> None:
        self._study, self._label, self._steps, self._count = study, label, steps, count
        self._before, self._at = study._done, -1
        study._done += steps * count

    def update(self, step: int, loss: float | None) -> None:
        """Reports that `step` steps are done."""
        if self._at < 0:  # of a resumed run, most of them were done before this call
            self._study._skipped += step * self._count
        self._at = step
        self._study.show(self._label, self._before + step * self._count, step, self._steps, loss)

    def ended(self) -> None:
        """Ends the run: its remaining steps must not count towards the pace."""
        self._study._skipped += (self._steps - max(self._at, 0)) * self._count

    def say(self, sentence: str) -> None:
        """Ignores a line about one run: in a study, the table has it."""

    def __exit__(self, *_: Any) -> None: ...
