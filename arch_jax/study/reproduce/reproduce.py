"""Reproductions: an experiment's published numbers beside measured ones, as a record.

The experiment's file has `published = (arch_jax.Published(...), ...)`, with the tolerance, before anything is run.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from arch_jax import fields
from arch_jax.errors import UsageError
from arch_jax.experiment import Experiment, Published
from arch_jax.study.runs.run import StudyRun
from arch_jax.study.runs.study import Study, metric_values, seeded
from arch_jax.study.statistics import Interval, interval
from arch_jax.train.workdir import versions

FORMAT = 1

#: Fields of an experiment that a record does not depend on: seeds are counted from 0, the others change no metric.
_BESIDE = ("name", "seed", "keep", "tensorboard")


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

    def to_json(self) -> dict[str, Any]:
        """All of it, with means and verdicts, as JSON data."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "figures"}
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
        return {"format": FORMAT} | plain | {"changes": list(self.changes), "figures": figures}

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
        plain = {f.name: data[f.name] for f in dataclasses.fields(Record)}
        kinds = dict.fromkeys(("name", "fingerprint", "device", "date"), str) | {"experiment": dict, "versions": dict}
        kinds |= {"data": str | None, "commit": str | None, "seconds": float | int | None}
        for name, kind in kinds.items():
            if not isinstance(plain[name], kind):
                raise TypeError(f"{name} is {plain[name]!r}")
        for seed, value in [pair for one in figures for pair in one.values.items()]:
            if not math.isfinite(value):
                raise ValueError(f"the figure of seed {seed} is {value}")
        return Record(**plain | {"figures": tuple(figures), "changes": tuple(data["changes"])})


def reproduce(experiment: Experiment, module: types.ModuleType, study: Study, seeds: int | None = None) -> Record:
    """Runs an experiment with its seeds, and compares its published numbers with the measured ones.

    Args:
      experiment: the experiment.
      module: its file, with `published`.
      study: folder of the runs.
      seeds: their number, 0, 1, 2 ...; None is as many as each published number declares.

    Returns:
      The record; `ledger.write_record` keeps it.

    Raises:
      UsageError: the file publishes nothing, an experiment that can't be run, or a metric that it does not have.
      Stopped: the study was asked to stop; what is done is kept.
    """
    published = published_by(module)
    if not published:
        raise UsageError(
            f"the experiment {experiment.name!r} publishes nothing to compare with; expected "
            "published = (arch_jax.Published(...),) in its file"
        )
    count = seeds if seeds is not None else max(one.seeds for one in published)
    cells = [StudyRun(experiment.name, one) for one in seeded(experiment, count)]
    results = study.run(cells)
    figures = []
    for one in published:
        own = results[: one.seeds] if seeds is None else results
        finished = [result.cell.experiment.seed for result in own if result.status == "finished"]
        values = [one.factor * value for value in metric_values(own, one.metric)]
        diverged = tuple(result.cell.experiment.seed for result in own if result.status == "diverged")
        figures.append(ReproducedFigure(one, dict(zip(finished, values)), diverged))
    times = [None if one.step_seconds is None else one.step * one.step_seconds for one in results]
    plain = configuration(experiment)
    return Record(
        name=Path(str(module.__file__)).stem,
        fingerprint=fingerprint(plain, published),
        experiment=plain,
        changes=tuple(place for place, _, _ in fields.difference(configuration(module.config()), plain)),
        figures=tuple(figures),
        data=study.corpus(cells[0]).facts.get("sha256"),
        versions=versions(),
        device=device(),
        seconds=None if None in times else sum(times),
        commit=commit(Path(str(module.__file__))),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )


def published_by(module: types.ModuleType) -> tuple[Published, ...]:
    """The numbers that an experiment's file publishes; without texts among them, which have nothing to compare."""
    found = getattr(module, "published", ())
    found = (found,) if isinstance(found, Published | str) else found
    return tuple(one for one in found if isinstance(one, Published))


def configuration(experiment: Experiment) -> dict[str, Any]:
    """All of an experiment that its metrics depend on, as JSON data."""
    return {name: value for name, value in experiment.to_json().items() if name not in _BESIDE}


def fingerprint(plain: Mapping[str, Any], published: tuple[Published, ...]) -> str:
    """16 hexadecimal digits of a hash of a configuration and the published numbers it is compared with."""
    # Sources and units may be reworded.
    held = [dataclasses.asdict(one) for one in published]
    held = [{name: value for name, value in one.items() if name not in ("source", "unit")} for one in held]
    return hashlib.sha256(json.dumps([plain, held], sort_keys=True).encode()).hexdigest()[:16]


def device() -> str:
    """The device, such as "NVIDIA H100 80GB HBM3 x 1" or "AMD EPYC 7B13, 2 cores"."""
    kind = jax.devices()[0].device_kind
    if jax.devices()[0].platform != "cpu":
        return f"{kind} x {jax.device_count()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores"


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine() or "CPU"


def commit(file: Path) -> str | None:
    """The commit of the clone that an experiment's file is in, with "+changes" where files differ from it.

    The records themselves and the README beside them, which a reproduction writes, may differ. None where the file's
    folder is not in a clone: a wheel that is installed inside one is not of it.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(file.resolve().parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if not git("ls-files", "--", "."):
        return None
    head, status = (
        git("rev-parse", "--short=12", "HEAD"),
        git("status", "--porcelain", "--", ":/", ":!results", ":!README.md"),
    )
    if head is None or status is None:
        return None
    return head + ("+changes" if status else "")
