"""Results of a comparison: the models' metrics, ranked, and all of it as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from arch_jax import fields
from arch_jax.study.compare.budget import Budget
from arch_jax.study.runs.run import RunResult
from arch_jax.study.statistics import Difference, Interval

#: The compared validation metric.
METRIC = "loss"


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """The results of one model.

    Attributes:
      label: its name in the comparison.
      changes: the fields that were set beyond those asked for: fitted to the task, and scaled to the budget.
      results: one a seed, in the order of the seeds.
      values: seed -> validation loss, of the finished ones.
      mean: of those; None if all diverged.
      difference: to the best, paired by seed; None for the best itself.
      p: of that difference, after Holm's correction; None without an interval.
      tuned: field -> the value that was chosen for this model.
      units: seen in training, such as tokens.
      step_seconds: the median time of a step; None if not known.
    """

    label: str
    changes: Mapping[str, Any]
    results: tuple[RunResult, ...]
    values: Mapping[int, float]
    mean: Interval | None
    difference: Difference | None
    p: float | None
    tuned: Mapping[str, Any]
    units: int
    step_seconds: float | None

    @property
    def steps(self) -> int:
        """The planned number of each run."""
        return self.results[0].cell.experiment.steps

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return self.results[0].parameters

    @property
    def step_flops(self) -> int:
        """Of a step, in matrix products."""
        return self.results[0].flops

    @property
    def flops(self) -> int:
        """Of the whole training."""
        return self.step_flops * self.steps

    @property
    def seconds(self) -> float | None:
        """Of the whole training, without compilation and evaluations."""
        return None if self.step_seconds is None else self.step_seconds * self.steps

    @property
    def peak_bytes(self) -> int | None:
        """Memory of the compiled train program on a device."""
        return max((r.peak_bytes for r in self.results if r.peak_bytes is not None), default=None)

    @property
    def diverged(self) -> tuple[RunResult, ...]:
        """The runs that did not finish."""
        return tuple(result for result in self.results if result.status == "diverged")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models ranked by validation loss.

    Attributes:
      experiment: the task.
      budget: of every model.
      seeds: reported on.
      unit: of a batch, such as "tokens".
      rows: the best first; those that all diverged last.
      held_equal: what was the same for all, or within a few percent, with the numbers.
      not_equal: what was not, with the range.
      notes: for the reader.
    """

    experiment: str
    budget: Budget
    seeds: tuple[int, ...]
    unit: str
    rows: tuple[ComparisonRow, ...]
    held_equal: tuple[str, ...]
    not_equal: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON data."""
        return {
            "experiment": self.experiment,
            "budget": dataclasses.asdict(self.budget),
            "seeds": list(self.seeds),
            "metric": METRIC,
            "unit": self.unit,
            "models": [_row_to_json(rank, row) for rank, row in enumerate(self.rows, start=1)],
            "held_equal": list(self.held_equal),
            "not_equal": list(self.not_equal),
            "notes": list(self.notes),
        }


def _row_to_json(rank: int, row: ComparisonRow) -> dict[str, Any]:
    return {
        "rank": rank,
        "model": row.label,
        "changes": fields.to_json(row.changes),
        "tuned": fields.to_json(row.tuned),
        "values": {str(seed): value for seed, value in row.values.items()},
        "mean": None if row.mean is None else dataclasses.asdict(row.mean),
        "difference": None if row.difference is None else dataclasses.asdict(row.difference),
        "p_holm": row.p,
        "diverged": [result.cell.experiment.seed for result in row.diverged],
        "parameters": row.parameters,
        "flops_per_step": row.step_flops,
        "flops": row.flops,
        "steps": row.steps,
        "units": row.units,
        "seconds_per_step": row.step_seconds,
        "seconds": row.seconds,
        "peak_bytes": row.peak_bytes,
        "metrics": {str(r.cell.experiment.seed): r.validation for r in row.results if r.status == "finished"},
        "checks": {str(r.cell.experiment.seed): [[step, m] for step, m in r.checks] for r in row.results},
    }
