"""Records of reproductions: published numbers beside measured ones, variants with their curves, how each was made."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from arch_jax.errors import UsageError, unknown
from arch_jax.experiment import Published
from arch_jax.study.statistics import Interval, interval, prediction

FORMAT = 1
#: The name of the training loss among a variant's curves; the others are validation metrics.
TRAINING_LOSS = "training loss"
#: Points of a training curve that a record keeps, at most.
POINTS = 200


@dataclasses.dataclass(frozen=True)
class ReproducedFigure:
    """One published number, and the measured ones.

    Attributes:
      published: the number it is compared with.
      values: seed -> the measured number, in the published unit.
      diverged: seeds without a number.
    """

    published: Published
    values: Mapping[int, float]
    diverged: tuple[int, ...] = ()

    @property
    def mean(self) -> Interval | None:
        """Over the seeds; None if all diverged."""
        return interval(list(self.values.values())) if self.values else None

    @property
    def holds(self) -> bool:
        """True if the mean is within the tolerance, on the side that counts, and no seed diverged."""
        if self.mean is None or self.diverged:
            return False
        above = self.mean.mean - self.published.value
        # A value exactly at the tolerance passes, whatever the last digit of a sum is.
        allowed = self.published.tolerance + 1e-9 * abs(self.published.value)
        off = {"near": abs(above), "at least": -above, "at most": above}[self.published.direction]
        return off <= allowed

    @property
    def verdict(self) -> str:
        """One of "reproduced" and "not reproduced"; in a smaller setting "behaviour shown" or "behaviour not shown"."""
        if self.published.behaviour:
            return "behaviour shown" if self.holds else "behaviour not shown"
        return "reproduced" if self.holds else "not reproduced"

    @property
    def row(self) -> dict[str, str]:
        """The number as it stands in tables: published, source, measured, seeds and verdict, as text."""
        side = "" if self.published.direction == "near" else f"{self.published.direction} "
        return {
            "published": f"{side}{self.published.value:g} {self.published.unit}",
            "source": self.published.source,
            "measured": "diverged" if self.mean is None else str(self.mean),
            "seeds": str(len(self.values)),
            "verdict": self.verdict,
        }

    @property
    def remark(self) -> str:
        """Why the verdict is weaker than declared; empty if it is not."""
        found = []
        if self.diverged:
            found.append("diverged: " + ", ".join(f"seed {seed}" for seed in self.diverged))
        count = len(self.values) + len(self.diverged)
        if count < self.published.seeds:
            found.append(f"over {count} of the {self.published.seeds} seeds declared")
        return "; ".join(found)


@dataclasses.dataclass(frozen=True)
class RecordedVariant:
    """One variant of a recorded experiment, with all of its seeds.

    Attributes:
      label: such as "depth=1"; the experiment as its file has it is "baseline".
      changes: its overrides of the experiment.
      parameters: their number.
      flops: of a step, in matrix products.
      step_seconds: median time of a step, mean over the seeds; None if too short to tell.
      results: seed -> metric -> the last validation's value; without diverged seeds.
      curves: seed -> "training loss" or a validation metric -> (steps, values).
      diverged: seeds that diverged.
    """

    label: str
    changes: Mapping[str, Any]
    parameters: int
    flops: int
    step_seconds: float | None
    results: Mapping[int, Mapping[str, float]]
    curves: Mapping[int, Mapping[str, tuple[tuple[int, ...], tuple[float, ...]]]]
    diverged: tuple[int, ...] = ()

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> the metric's last value; without diverged seeds.

        Raises:
          UsageError: no such metric; with the nearest names.
        """
        names = next(iter(self.results.values()), {metric: 0.0})
        if metric not in names:
            raise unknown("metric", metric, names)
        return {seed: found[metric] for seed, found in self.results.items()}

    def interval(self, metric: str) -> Interval:
        """Mean of a metric over the seeds, with the 95 % interval of the mean.

        Raises:
          UsageError: no such metric, or all seeds diverged.
        """
        return interval(self._some(metric))

    def prediction(self, metric: str, scale: str = "linear") -> Interval:
        """Mean of a metric over the seeds, with the interval in which a further seed lies with 95 %.

        Args:
          metric: its name.
          scale: where its values are taken to be normal: "linear"; "log", for a loss near 0, which differs by factors
            from seed to seed; "arcsine", for a share such as an accuracy. The interval stays within their range.

        Raises:
          UsageError: no such metric, fewer than 3 seeds that finished, a value that has no place on the scale, or an
            unknown scale.
        """
        return prediction(self._some(metric), scale=scale)

    def curve(self, metric: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Seed -> (steps, values) of "training loss" or of a validation metric at each evaluation.

        Raises:
          UsageError: no such curve; with the nearest names.
        """
        for curves in self.curves.values():
            if metric not in curves:
                raise unknown("curve", metric, curves)
        return {seed: (np.asarray(own[metric][0]), np.asarray(own[metric][1])) for seed, own in self.curves.items()}

    def _some(self, metric: str) -> list[float]:
        values = list(self.values(metric).values())
        if not values:
            raise UsageError(f"all seeds of the variant {self.label!r} diverged; expected at least one that finished")
        return values


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of a reproduction.

    Attributes:
      name: of the experiment's file.
      fingerprint: 16 hexadecimal digits of a hash of the experiment and its published numbers.
      experiment: the run, as JSON data; without fields that its metrics do not depend on.
      changes: fields that were set to other values than the file's; such a record is not for the ledger.
      figures: one for each published number.
      data: identifies the data's content (`sha256`); None if there is no such thing.
      versions: of Python and the packages.
      device: kind and number.
      seconds: of training, over all seeds, without compilation and evaluation; None if too short to tell.
      commit: of the experiment's clone, with "+changes" if files differed from it; None without a clone.
      date: such as 2026-01-31.
      variants: the baseline and the variants of the axes that the file names in `recorded`; empty in early records.
      command: makes the record again; empty in early records.
      code: files of the package that ran -> hash of their code (`provenance`); empty in early records.
    """

    name: str
    fingerprint: str
    experiment: Mapping[str, Any]
    changes: tuple[str, ...]
    figures: tuple[ReproducedFigure, ...]
    data: str | None
    versions: Mapping[str, str]
    device: str
    seconds: float | None
    commit: str | None
    date: str
    variants: tuple[RecordedVariant, ...] = ()
    command: str = ""
    code: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def variant(self, label: str) -> RecordedVariant:
        """The variant of a label.

        Raises:
          UsageError: no such variant; with the nearest labels.
        """
        found = {one.label: one for one in self.variants}
        if label not in found:
            raise unknown("variant", label, found)
        return found[label]

    def to_json(self) -> dict[str, Any]:
        """All of it, with means and verdicts, as JSON data."""
        parts = ("figures", "variants")
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in parts}
        figures = [
            {
                "published": dataclasses.asdict(one.published),
                "values": {str(seed): value for seed, value in one.values.items()},
                "diverged": list(one.diverged),
                "mean": None if one.mean is None else dataclasses.asdict(one.mean),
                "verdict": one.verdict,
            }
            for one in self.figures
        ]
        variants = [_variant_to_json(one) for one in self.variants]
        changes = list(self.changes)
        return {"format": FORMAT} | plain | {"changes": changes, "figures": figures, "variants": variants}

    def to_text(self) -> str:
        """The file's text: JSON with a line for each list of numbers."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False)
        # A curve's points each on a line of their own would be a file of thousands.
        flat = lambda found: "[" + re.sub(r"\s*\n\s*", " ", found[1]).strip() + "]"
        return re.sub(r"\[([-+.0-9eE,\s]+)\]", flat, text) + "\n"

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Record":
        """Inverse of `to_json`; means and verdicts are recomputed.

        Raises:
          KeyError, TypeError, ValueError: it is not one.
        """
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}; expected {FORMAT}")
        figures = [
            ReproducedFigure(
                Published(**one["published"]),
                {int(seed): float(value) for seed, value in one["values"].items()},
                tuple(map(int, one["diverged"])),
            )
            for one in data["figures"]
        ]
        later = {"variants": [], "command": "", "code": {}}
        plain = {f.name: {**later, **data}[f.name] for f in dataclasses.fields(Record)}
        kinds = dict.fromkeys(("name", "fingerprint", "device", "date", "command"), str)
        kinds |= {"experiment": dict, "versions": dict, "code": dict}
        kinds |= {"data": str | None, "commit": str | None, "seconds": float | int | None}
        for name, kind in kinds.items():
            if not isinstance(plain[name], kind):
                raise TypeError(f"{name} is {plain[name]!r}")
        for seed, value in [pair for one in figures for pair in one.values.items()]:
            if not math.isfinite(value):
                raise ValueError(f"the figure of seed {seed} is {value}")
        variants = tuple(_variant_from_json(one) for one in plain["variants"])
        return Record(**plain | {"figures": tuple(figures), "changes": tuple(data["changes"]), "variants": variants})

    def _repr_markdown_(self) -> str:
        """The record's rows of the ledger, as a notebook shows them."""
        rows = ["| published | source | measured | seeds | verdict |", "| --- | --- | --- | --- | --- |"]
        for one in self.figures:
            row = one.row
            row["verdict"] += f" ({one.remark})" if one.remark else ""
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row.values()) + " |")
        made = f"`{self.command or f'arch-jax reproduce {self.name}'}`, {self.device}, {self.date}"
        return "\n".join(
            [*(rows if self.figures else ["Nothing is published that it could be compared with."]), "", made]
        )

    def __str__(self) -> str:
        return self._repr_markdown_()


def recorded_curves(
    training: tuple[tuple[int, float], ...], checks: tuple[tuple[int, Mapping[str, float]], ...]
) -> dict[str, tuple[tuple[int, ...], tuple[float, ...]]]:
    """A run's curves as a record keeps them: to five digits, the training loss at `POINTS` steps at most."""
    stride = -(-len(training) // POINTS) or 1
    kept = training[::-1][::stride][::-1]  # with the last
    curves = {TRAINING_LOSS: (tuple(step for step, _ in kept), tuple(_rounded(value) for _, value in kept))}
    for name in dict.fromkeys(name for _, found in checks for name in found):
        points = [(step, found[name]) for step, found in checks if name in found]
        curves[name] = (tuple(step for step, _ in points), tuple(_rounded(value) for _, value in points))
    return curves


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _variant_to_json(one: RecordedVariant) -> dict[str, Any]:
    plain = {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}
    return plain | {
        "changes": dict(one.changes),
        "results": {str(seed): dict(found) for seed, found in one.results.items()},
        "curves": {
            str(seed): {name: [list(steps), list(values)] for name, (steps, values) in curves.items()}
            for seed, curves in one.curves.items()
        },
        "diverged": list(one.diverged),
    }


def _variant_from_json(data: Mapping[str, Any]) -> RecordedVariant:
    results = {int(seed): {k: float(v) for k, v in found.items()} for seed, found in data["results"].items()}
    curves = {
        int(seed): {name: (tuple(map(int, steps)), tuple(map(float, values))) for name, (steps, values) in own.items()}
        for seed, own in data["curves"].items()
    }
    plain = {f.name: data[f.name] for f in dataclasses.fields(RecordedVariant)}
    diverged = tuple(map(int, data["diverged"]))
    return RecordedVariant(**plain | {"results": results, "curves": curves, "diverged": diverged})
