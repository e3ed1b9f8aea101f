"""Ablations: the effect of each part of an experiment, with an interval.

An experiment's file has generators `ablate_NAME()`, the axes; each yields overrides of the configuration, the variants.
Every variant runs with the same seeds as the baseline. The same seed gives the same order of the data and, for each
parameter that both have in one shape, the same initial value; so differences are taken seed by seed.
"""

import dataclasses
import itertools
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from arch_jax import fields
from arch_jax.errors import UsageError, unknown
from arch_jax.experiment import Experiment
from arch_jax.study.ablate.results import Ablation, AblationRow, Variant
from arch_jax.study.formatting import format_setting
from arch_jax.study.runs.run import StudyRun
from arch_jax.study.runs.study import Study, metric_values, seeded
from arch_jax.study.statistics import LEAST, against, interval

BASELINE = "baseline"


def axes(module: types.ModuleType) -> dict[str, list[dict[str, Any]]]:
    """Axis -> its overrides, of an experiment's file.

    Raises:
      UsageError: a generator that fails, or yields something other than overrides.
    """
    found = {}
    for name, generator in vars(module).items():
        if name.startswith("ablate_") and callable(generator):
            try:
                found[name.removeprefix("ablate_")] = [dict(changes) for changes in generator()]
            except Exception as problem:
                raise UsageError(
                    f"{name}() fails with {type(problem).__name__}: {problem}; expected a generator of overrides, such "
                    'as {"model.depth": 2}'
                ) from problem
    return found


def overridden(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """The experiment with the requested settings.

    Raises:
      UsageError: unknown field, a value of the wrong type, or a setting that changes nothing.
    """
    new = experiment.overridden(changes)
    changed = [path for path, _, _ in fields.difference(experiment.to_json(), new.to_json())]
    for name, value in changes.items():
        if not any(path == name or path.startswith(f"{name}.") or name.startswith(f"{path}.") for path in changed):
            raise UsageError(f"{name}={value} changes nothing: it is so already; expected another value, or none")
    return new


def variants(
    experiment: Experiment, available: Mapping[str, list[dict[str, Any]]], wanted: Iterable[str], product: bool = False
) -> list[Variant]:
    """The baseline and the variants of the axes.

    Args:
      experiment: the baseline.
      available: axis -> its overrides, as `axes` finds them.
      wanted: names of axes; None takes all.
      product: all combinations of the axes' variants, instead of one axis at a time.

    Returns:
      The baseline first; duplicate variants are dropped.

    Raises:
      UsageError: no such axis; an axis that changes nothing, or an override that can't be made.
    """
    names = list(dict.fromkeys(wanted)) or list(available)
    for name in names:
        if name not in available:
            raise unknown("axis", name, available)
    if not names:
        raise UsageError(f"the experiment {experiment.name!r} has no axes; expected ablate_NAME() in its file")
    found = {_identity(experiment): Variant(BASELINE, (), {}, experiment)}
    combinations: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    for name in names:
        alone = [_variant(experiment, (name,), changes) for changes in available[name]]
        if all(_identity(one.experiment) == _identity(experiment) for one in alone):
            raise UsageError(f"the axis {name!r} changes nothing: all its variants are the experiment as it is")
        if not product:
            combinations += [((name,), changes) for changes in available[name]]
    if product:
        for chosen in itertools.product(*(available[name] for name in names)):
            used = tuple(name for name, changes in zip(names, chosen) if changes)
            combinations.append((used, {path: value for changes in chosen for path, value in changes.items()}))
    for used, changes in combinations:
        variant = _variant(experiment, used, changes)
        found.setdefault(_identity(variant.experiment), variant)
    chosen = list(found.values())
    taken = [one.label for one in chosen]
    rename = lambda one: dataclasses.replace(one, label=label_of(one.changes, full=True))
    return [one if taken.count(one.label) == 1 else rename(one) for one in chosen]


def ablate(
    chosen: Sequence[Variant], study: Study, *, seeds: int = 3, metric: str = "loss", notes: Iterable[str] = ()
) -> Ablation:
    """Runs every variant with every seed, and compares each with the baseline.

    Args:
      chosen: the baseline first.
      study: folder of the runs.
      seeds: the number of seeds: the experiment's, and those after it.
      metric: of the validation metrics.
      notes: notes to pass on.

    Raises:
      UsageError: a variant that can't be run, or no such metric.
      Stopped: the study was asked to stop; what is done is kept.
    """
    cells = {one.label: [StudyRun(one.label, e) for e in seeded(one.experiment, seeds)] for one in chosen}
    results = iter(study.run([cell for own in cells.values() for cell in own]))
    by_label = {label: [next(results) for _ in own] for label, own in cells.items()}
    every = [result for own in by_label.values() for result in own]
    metric_values(every, metric)
    values = {
        label: {r.cell.experiment.seed: r.validation[metric] for r in own if r.status == "finished"}
        for label, own in by_label.items()
    }
    base = values[chosen[0].label]
    differences = [(None, None), *against([values[one.label] for one in chosen[1:]], base)]
    rows = tuple(
        AblationRow(
            variant=one,
            results=tuple(by_label[one.label]),
            values=values[one.label],
            mean=interval(list(values[one.label].values())) if values[one.label] else None,
            difference=difference,
            p=p,
        )
        for one, (difference, p) in zip(chosen, differences)
    )
    return Ablation(
        experiment=chosen[0].experiment.name,
        metric=metric,
        seeds=tuple(cell.experiment.seed for cell in cells[chosen[0].label]),
        rows=rows,
        notes=(*notes, *_notes(rows, seeds)),
    )


def _notes(rows: Sequence[AblationRow], seeds: int) -> list[str]:
    """Notes on the results for the reader."""
    found = []
    if seeds < LEAST:
        count = "1 seed" if seeds == 1 else f"{seeds} seeds"
        found.append(f"{count} a variant: no interval from fewer than {LEAST}")
    else:
        found.append("intervals: 95 %, Student's t; differences paired by seed; p by Holm's correction")
    for row in rows:
        for result in row.diverged:
            found.append(f"{row.variant.label}, seed {result.cell.experiment.seed} diverged: {result.reason}")
    return found


def _variant(experiment: Experiment, used: tuple[str, ...], changes: Mapping[str, Any]) -> Variant:
    try:
        return Variant(label_of(changes) or BASELINE, used, dict(changes), experiment.overridden(changes))
    except UsageError as problem:
        raise UsageError(f"the axis {' x '.join(used)}: {problem}") from None


def label_of(changes: Mapping[str, Any], full: bool = False) -> str:
    """The overrides in command-line form; fields by their last name, if that is unambiguous and not `full`."""
    last = [path.rsplit(".", 1)[-1] for path in changes]
    words = []
    for path, name in zip(changes, last):
        value = fields.to_json(changes[path])
        if isinstance(value, Mapping) and "module" in value:
            # Of an instance every field is written; of what a person wrote, only the fields that matter.
            rest = "" if dataclasses.is_dataclass(changes[path]) else ", ".join(
                f"{field}={format_setting(setting)}" for field, setting in value.items() if field != "module"
            )  # fmt: skip
            value = f"{value['module']}({rest})" if rest else value["module"]
        words.append(f"{path if full or last.count(name) > 1 else name}={format_setting(value)}")
    return ", ".join(words)


def _identity(experiment: Experiment) -> str:
    return json.dumps(experiment.settled().to_json(), sort_keys=True)
