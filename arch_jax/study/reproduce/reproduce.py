"""Reproductions: an experiment's published numbers beside measured ones, as a record.

The experiment's file has `published = (arch_jax.Published(...), ...)`, with the tolerance, before anything is run; and
`recorded = ("axis", ...)` where the variants of `ablate_axis()` belong to the record, with their curves.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from arch_jax import fields
from arch_jax.console import console
from arch_jax.errors import UsageError
from arch_jax.experiment import Experiment, Published
from arch_jax.study.ablate.ablate import BASELINE, axes, label_of, variants
from arch_jax.study.ablate.results import Variant
from arch_jax.study.reproduce.provenance import changed_since, executed_code
from arch_jax.study.reproduce.record import Record, RecordedVariant, ReproducedFigure, recorded_curves
from arch_jax.study.runs.run import RunResult, StudyRun
from arch_jax.study.runs.study import Study, metric_values, seeded
from arch_jax.study.statistics import LEAST
from arch_jax.train.workdir import versions

#: Fields of an experiment that a record does not depend on: seeds are counted from 0, the others change no metric.
_BESIDE = ("name", "seed", "keep", "tensorboard")


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
    published, recorded = published_by(module), recorded_by(module)
    if not published and not recorded:
        raise UsageError(
            f"the experiment {experiment.name!r} publishes nothing to compare with, and no axis of it is recorded; "
            'expected published = (arch_jax.Published(...),) or recorded = ("axis",) in its file'
        )
    count = seeds if seeds is not None else max([one.seeds for one in published] + ([LEAST] if recorded else []))
    chosen = {one.label: one for one in _variants(experiment, module, recorded, published)}
    cells = {label: [StudyRun(label, one) for one in seeded(v.experiment, count)] for label, v in chosen.items()}
    _forget_outdated(study, [cell for own in cells.values() for cell in own])
    with executed_code() as code:
        study.code = code.hashes
        found = iter(study.run([cell for own in cells.values() for cell in own]))
    results = {label: [next(found) for _ in own] for label, own in cells.items()}
    figures = [_figure(one, seeds, results, chosen) for one in published]
    every = [result for own in results.values() for result in own]
    times = [None if one.step_seconds is None else one.step * one.step_seconds for one in every]
    plain = configuration(experiment)
    name = Path(str(module.__file__)).stem
    return Record(
        name=name,
        fingerprint=fingerprint(plain, published),
        experiment=plain,
        changes=tuple(place for place, _, _ in fields.difference(configuration(module.config()), plain)),
        figures=tuple(figures),
        data=study.corpus(cells[BASELINE][0]).facts.get("sha256"),
        versions=versions(),
        device=device(),
        seconds=None if None in times else sum(times),
        commit=commit(Path(str(module.__file__))),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        variants=tuple(_recorded(chosen[label], own) for label, own in results.items()),
        command=f"arch-jax reproduce {name}" + ("" if seeds is None else f" --seeds {seeds}"),
        code=_merged([result.code for result in every]),
    )


def _forget_outdated(study: Study, cells: Iterable[StudyRun]) -> None:
    """Deletes the results of runs whose code has changed since: a record is of the code as it is."""
    for cell in cells:
        key = study.key(cell)
        done = study.kept(key, cell)
        if done is not None and (changed := changed_since(done.code)):
            console.tell(f"{cell.label}, seed {cell.experiment.seed}: {changed[0]} has changed since; it is run again")
            shutil.rmtree(study.folder(key))


def _variants(
    experiment: Experiment, module: types.ModuleType, recorded: tuple[str, ...], published: tuple[Published, ...]
) -> list[Variant]:
    """The baseline, the variants of the recorded axes, and those that a published number is of."""
    found = [Variant(BASELINE, (), {}, experiment)]
    if recorded:
        found = variants(experiment, axes(module), recorded)
    for one in published:
        for changes in (one.changes, one.against):
            if changes and _of(changes, experiment, found) is None:
                found.append(Variant(label_of(changes), (), dict(changes), experiment.overridden(changes)))
    return found


def _of(changes: Mapping[str, Any], experiment: Experiment, among: Iterable[Variant]) -> Variant | None:
    """The variant that the changes make, among those there are."""
    wanted = experiment.overridden(changes).to_json()
    return next((one for one in among if one.experiment.to_json() == wanted), None)


def _figure(
    published: Published,
    seeds: int | None,
    results: Mapping[str, list[RunResult]],
    chosen: Mapping[str, Variant],
) -> ReproducedFigure:
    """A published number beside the measured ones: of one variant, or of the difference of two, seed by seed."""
    experiment = chosen[BASELINE].experiment
    count = published.seeds if seeds is None else seeds

    def measured(changes: Mapping[str, Any] | None) -> tuple[dict[int, float], set[int]]:
        variant = _of(changes or {}, experiment, chosen.values())
        own = results[variant.label if variant is not None else BASELINE][:count]
        values = [published.factor * value for value in metric_values(own, published.metric)]
        finished = [result.cell.experiment.seed for result in own if result.status == "finished"]
        return dict(zip(finished, values)), {r.cell.experiment.seed for r in own if r.status == "diverged"}

    values, diverged = measured(published.changes)
    if published.against is not None:
        others, also = measured(published.against)
        values = {seed: value - others[seed] for seed, value in values.items() if seed in others}
        diverged |= also
    return ReproducedFigure(published, values, tuple(sorted(diverged)))


def _recorded(variant: Variant, results: list[RunResult]) -> RecordedVariant:
    times = [one.step_seconds for one in results if one.step_seconds is not None]
    return RecordedVariant(
        label=variant.label,
        changes=fields.to_json(variant.changes),
        parameters=results[0].parameters,
        flops=results[0].flops,
        step_seconds=sum(times) / len(times) if times else None,
        results={one.cell.experiment.seed: one.validation for one in results if one.status == "finished"},
        curves={one.cell.experiment.seed: recorded_curves(one.curve, one.checks) for one in results},
        diverged=tuple(one.cell.experiment.seed for one in results if one.status == "diverged"),
    )


def _merged(codes: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The code of all runs; where runs saw different code of a file, that which has changed since."""
    merged: dict[str, str] = {}
    for code in codes:
        stale = changed_since(code)
        merged |= {name: value for name, value in code.items() if name not in merged or name in stale}
    return dict(sorted(merged.items()))


def recorded_by(module: types.ModuleType) -> tuple[str, ...]:
    """The axes whose variants belong to the record of an experiment's file.

    Raises:
      UsageError: something else than names.
    """
    found = getattr(module, "recorded", ())
    if not isinstance(found, tuple | list) or not all(isinstance(name, str) for name in found):
        raise UsageError(f"recorded is {found!r}; expected a tuple of the names of axes, such as ('depth',)")
    return tuple(found)


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
    later = ("changes", "against")
    plainly = lambda name, value: name not in ("source", "unit") and (value is not None or name not in later)
    held = [{name: value for name, value in one.items() if plainly(name, value)} for one in held]
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
