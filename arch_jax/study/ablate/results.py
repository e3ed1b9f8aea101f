"""Results of an ablation: variants, their metrics, and all of it as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from arch_jax import fields
from arch_jax.experiment import Experiment
from arch_jax.study.runs.run import RunResult
from arch_jax.study.statistics import Difference, Interval


@dataclasses.dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
      label: such as "kv_heads=1"; the baseline's is "baseline".
      axes: those whose overrides made it; empty for the baseline.
      changes: of the configuration.
      experiment: the configuration with them.
    """

    label: str
    axes: tuple[str, ...]
    changes: Mapping[str, Any]
    experiment: Experiment


@dataclasses.dataclass(frozen=True)
class AblationRow:
    """The results of one variant.

    Attributes:
      variant: the variant.
      results: one a seed.
      values: of the metric, by seed; without diverged ones.
      mean: with its interval; None if all diverged.
      difference: to the baseline, over the seeds that both finished; None for the baseline, or if there are none.
      p: of the difference, after Holm's correction over all variants; None without an interval.
    """

    variant: Variant
    results: tuple[RunResult, ...]
    values: Mapping[int, float]
    mean: Interval | None
    difference: Difference | None
    p: float | None

    @property
    def diverged(self) -> tuple[RunResult, ...]:
        """The diverged results."""
        return tuple(result for result in self.results if result.status == "diverged")


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A finished ablation.

    Attributes:
      experiment: its name.
      metric: the compared validation metric.
      seeds: that every variant ran with.
      rows: the baseline first.
      notes: for the reader.
    """

    experiment: str
    metric: str
    seeds: tuple[int, ...]
    rows: tuple[AblationRow, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All results, by variant."""
        return {
            "experiment": self.experiment,
            "metric": self.metric,
            "seeds": list(self.seeds),
            "notes": list(self.notes),
            "variants": [_row_to_json(row) for row in self.rows],
        }


def _row_to_json(row: AblationRow) -> dict[str, Any]:
    first = row.results[0]
    times = [result.step_seconds for result in row.results if result.step_seconds is not None]
    return {
        "variant": row.variant.label,
        "axes": list(row.variant.axes),
        "changes": fields.to_json(row.variant.changes),
        "values": {str(seed): value for seed, value in row.values.items()},
        "mean": None if row.mean is None else dataclasses.asdict(row.mean),
        "difference": None if row.difference is None else dataclasses.asdict(row.difference),
        "p_holm": row.p,
        "diverged": [result.cell.experiment.seed for result in row.diverged],
        "parameters": first.parameters,
        "flops_per_step": first.flops,
        "seconds_per_step": sum(times) / len(times) if times else None,
        "peak_bytes": max((r.peak_bytes for r in row.results if r.peak_bytes is not None), default=None),
        "seeds_together": max(result.together for result in row.results),
        "metrics": {str(r.cell.experiment.seed): r.validation for r in row.results if r.status == "finished"},
        "curves": {str(r.cell.experiment.seed): [list(point) for point in r.curve] for r in row.results},
        "checks": {str(r.cell.experiment.seed): [[step, m] for step, m in r.checks] for r in row.results},
    }
