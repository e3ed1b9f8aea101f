"""One run of a study, what came of it, and what keeps both."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from arch_jax.errors import ArchJaxError
from arch_jax.experiment import Experiment


class Stopped(ArchJaxError):
    """A study was asked to stop (SIGTERM, Ctrl-C) and has saved what it was at."""

    exit_code = 0


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
      label: what the person calls it; not a part of what it is.
      experiment: what is run; with the seed.
      part: which validation batches it is judged on: "all", "tuning" (every other one) or "report" (the rest).
    """

    label: str
    experiment: Experiment
    part: Literal["all", "tuning", "report"] = "all"

    @property
    def stored(self) -> Experiment:
        """The run as its folder has it: under one name, whoever asks for it."""
        return dataclasses.replace(self.experiment, name="cell", tensorboard=False)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What came of a cell.

    Attributes:
      cell: which.
      status: "finished", or "diverged": a loss, metric or parameter was no longer finite.
      reason: the sentence that says so; empty for a finished one.
      step: steps taken.
      validation: the last validation metrics by name; empty for a diverged one.
      curve: (step, training loss of the first player), as far as it was logged.
      checks: (step, validation metrics) of every evaluation.
      parameters: how many.
      flops: of a step, in matrix products.
      step_seconds: the median time of a step; none where too few were taken in one go to tell.
      peak_bytes: what the compiled train program holds on a device; none where the compiler does not tell.
      together: how many seeds were trained as one program; 1 is alone.
    """

    cell: StudyRun
    status: Literal["finished", "diverged"]
    reason: str
    step: int
    validation: dict[str, float]
    curve: tuple[tuple[int, float], ...]
    checks: tuple[tuple[int, dict[str, float]], ...]
    parameters: int
    flops: int
    step_seconds: float | None
    peak_bytes: int | None
    together: int = 1


@runtime_checkable
class Store(Protocol):
    """Where the runs of a study are kept: what a way of training them needs of a `Study`."""

    path: Path

    def corpus(self, cell: StudyRun) -> Any:
        """The data of a run."""
        ...

    def folder(self, key: str) -> Path:
        """The folder of a run."""
        ...

    def kept(self, key: str, cell: StudyRun) -> RunResult | None:
        """The result of a run that is done; None for another."""
        ...

    def write(self, key: str, cell: StudyRun, **found: Any) -> None:
        """Writes down what came of a run."""
        ...

    def stopped(self) -> Stopped:
        """The exception for a study that was asked to stop."""
        ...
