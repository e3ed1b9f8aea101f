"""One run of a study, its result, and the interface of the store that keeps both."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from arch_jax.errors import ArchJaxError
from arch_jax.experiment import Experiment


class Stopped(ArchJaxError):
    """A study was asked to stop (SIGTERM, Ctrl-C) and has saved the current run."""

    exit_code = 0


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
      label: its name in the results; not part of its identity.
      experiment: the experiment, with the seed.
      part: validation batches it is judged on: "all", "tuning" (every other one) or "report" (the rest).
    """

    label: str
    experiment: Experiment
    part: Literal["all", "tuning", "report"] = "all"

    @property
    def stored(self) -> Experiment:
        """The run without its label: stored under one name, whoever asks for it."""
        return dataclasses.replace(self.experiment, name="cell", tensorboard=False)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
      cell: the run.
      status: "finished", or "diverged": a loss, metric or parameter was no longer finite.
      reason: the sentence that describes the divergence; empty for a finished one.
      step: steps taken.
      validation: the last validation metrics by name; empty for a diverged one.
      curve: (step, training loss of the first player), as far as it was logged.
      checks: (step, validation metrics) of every evaluation.
      parameters: their number.
      flops: of a step, in matrix products.
      step_seconds: the median time of a step; None if too few were taken without a pause to tell.
      peak_bytes: memory of the compiled train program on a device; None if the compiler does not tell.
      together: the number of seeds trained as one program; 1 is alone.
      code: files of the package that had run by its end -> hash of their code; empty where nobody asked.
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
    code: Mapping[str, str] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Store(Protocol):
    """Protocol of the store of a study's runs: what a way of training them needs of a `Study`."""

    path: Path

    def corpus(self, cell: StudyRun) -> Any:
        """The data of a run."""
        ...

    def folder(self, key: str) -> Path:
        """The folder of a run."""
        ...

    def kept(self, key: str, cell: StudyRun) -> RunResult | None:
        """The result of a finished run; None for another."""
        ...

    def write(self, key: str, cell: StudyRun, **found: Any) -> None:
        """Stores the result of a run."""
        ...

    def stopped(self) -> Stopped:
        """The exception for a study that was asked to stop."""
        ...
