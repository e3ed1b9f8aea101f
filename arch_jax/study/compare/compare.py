"""Different architectures on one task under one budget, ranked, with a list of what was equal and what was not.

The budget is of parameters or FLOPs (each model is scaled in its family's usual shape until it meets it), or of tokens
or seconds (the models stay as they are, and the steps follow).
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from arch_jax import fields
from arch_jax.errors import RunError, UsageError
from arch_jax.experiment import Experiment
from arch_jax.study.compare.budget import Budget
from arch_jax.study.compare.candidates import Contestant, field_at, fitted
from arch_jax.study.compare.presentation import held_and_not
from arch_jax.study.compare.results import METRIC, Comparison, ComparisonRow
from arch_jax.study.formatting import format_setting
from arch_jax.study.runs.run import RunResult, StudyRun
from arch_jax.study.runs.steps import lasting
from arch_jax.study.runs.study import Study, metric_values, seeded, shapes
from arch_jax.study.sizing import parameters, scaled, step_flops
from arch_jax.study.statistics import LEAST, against, interval

#: The seed of tuning and timing runs: never one that is reported.
APART = 1000


def compare(
    contestants: Sequence[Contestant],
    experiment: Experiment,
    budget: Budget,
    study: Study,
    *,
    seeds: int = 3,
    tune: Mapping[str, Sequence[Any]] | None = None,
) -> Comparison:
    """Trains every model on the experiment's task under the budget, and ranks them.

    Args:
      contestants: two or more.
      experiment: its data, objective, optimizer and steps are used; its model gives what the task determines.
      budget: parameters and flops scale the models, at the experiment's steps; tokens and seconds set the steps, and
        the schedule (its horizon, warm-up and evaluations) is stretched with them.
      study: folder of the runs.
      seeds: the number of reported seeds of each model, from 0 on.
      tune: field of the experiment -> values; each model gets the one with the lowest loss (of several fields, the
        best combination). It is judged on every other validation batch and by a seed that is not reported; the reported
        metrics are on the other batches.

    Raises:
      UsageError: fewer than two models, one for another task, a budget that a model can't meet (with the nearest it
        can), a field that can't be tuned.
      Stopped: the study was asked to stop; what is done is kept.
    """
    labels = [one.label for one in contestants]
    if len(contestants) < 2:
        raise UsageError(f"compare has {len(contestants)} models; expected at least 2")
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"the model {label!r} stands twice; expected different ones")
    seeded(experiment, seeds)  # refused before anything is run
    corpus = study.corpus(StudyRun("", experiment))
    per_step, unit = corpus.units_per_batch, corpus.unit
    grid = _grid(experiment, tune or {})
    changes, runs = {}, {}
    for one in contestants:
        changes[one.label], runs[one.label] = fitted(one, experiment, corpus)
    if budget.kind in ("parameters", "flops"):
        for label, run in runs.items():
            found = _scaled(label, run, budget, corpus)
            changes[label] |= found.changes
            runs[label] = dataclasses.replace(run, model=found.module)
    else:
        lengths = {label: round(budget.amount / per_step) for label in labels}
        if budget.kind == "seconds":
            lengths = {label: round(budget.amount / time) for label, time in _times(runs, study).items()}
        for label, steps in lengths.items():
            if steps < 1:
                least = f"{per_step:,} {unit}" if budget.kind == "tokens" else "more seconds"
                raise UsageError(
                    f"{label}: a budget of {budget.amount:g} {budget.kind} is less than one step; expected at least "
                    f"{least}"
                )
            runs[label] = lasting(runs[label], steps)
    tuned, notes = _tuned(runs, grid, study)
    part = "report" if grid else "all"
    runs = {label: run.overridden(tuned[label]) for label, run in runs.items()}
    cells = [StudyRun(label, one, part) for label, run in runs.items() for one in seeded(run, seeds)]
    results = iter(study.run(cells))
    by_label = {label: tuple(next(results) for _ in range(seeds)) for label in labels}
    rows = _ranked(by_label, changes, tuned, per_step)
    held, not_held = held_and_not(rows, experiment, budget.kind, unit, per_step)
    return Comparison(
        experiment=experiment.name,
        budget=budget,
        seeds=tuple(range(seeds)),
        unit=unit,
        rows=rows,
        held_equal=held,
        not_equal=not_held,
        notes=(*notes, *_notes(rows, seeds)),
    )


def _scaled(label: str, run: Experiment, budget: Budget, corpus: Any) -> Any:
    """The model of a run, scaled to a budget of parameters or FLOPs."""
    batch = shapes(corpus)
    with_model = lambda module: dataclasses.replace(run, model=module)
    if budget.kind == "parameters":
        return scaled(run.model, budget.amount, lambda m: parameters(with_model(m), batch), name=label)
    cost = lambda m: step_flops(with_model(m), batch) * run.steps
    return scaled(run.model, budget.amount, cost, name=label, unit=f"FLOPs in {run.steps} steps")


def _times(runs: Mapping[str, Experiment], study: Study) -> dict[str, float]:
    """Seconds a step of each, from a short run that is kept in the study and not repeated."""
    found: dict[str, float] = {}
    for seed in (APART, APART + 1, APART + 2):  # a run that was stopped and resumed may be too short to tell
        left = {label: run for label, run in runs.items() if label not in found}
        format_setting = {label: lasting(run, 5 * run.steps_per_dispatch) for label, run in left.items()}
        whole = lambda one, seed=seed: dataclasses.replace(
            one, seed=seed, evaluate_every=one.steps, checkpoint_every=one.steps
        )
        cells = [StudyRun(f"{label} (timed)", whole(one), "tuning") for label, one in format_setting.items()]
        for label, result in zip(left, study.run(cells)):
            if result.step_seconds:
                found[label] = result.step_seconds
        if len(found) == len(runs):
            return found
    missing = next(label for label in runs if label not in found)
    raise RunError(f"{missing}: a step could not be timed; expected a run of {runs[missing].steps_per_dispatch} steps "
                   "that does not diverge")  # fmt: skip


def _grid(experiment: Experiment, tune: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values to choose from; empty if nothing is tuned.

    Raises:
      UsageError: a field that does not exist, or a value of the wrong type.
    """
    if not tune:
        return []
    here = {field.name for field in fields.settings(experiment)}
    named = {path if "." in path or path in here else f"optimizer.{path}": values for path, values in tune.items()}
    for path, values in named.items():
        if path.split(".")[0] in ("model", "data", "objective", "seed", "steps"):
            raise UsageError(f"{path} can't be tuned, for it is what is compared, or held equal; expected a field "
                             "such as learning_rate or optimizer.weight_decay")  # fmt: skip
        if not values:
            raise UsageError(f"{path} has no values to choose from; expected some, such as 1e-4,3e-4,1e-3")
    settle = lambda path, value: field_at(experiment.overridden({path: value}), path)
    columns = [[(path, settle(path, value)) for value in values] for path, values in named.items()]
    return [dict(row) for row in itertools.product(*columns)]


def _tuned(
    runs: Mapping[str, Experiment], grid: Sequence[Mapping[str, Any]], study: Study
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The best of the grid for each model, and notes on the choice."""
    if not grid:
        return {label: {} for label in runs}, []
    label_of = lambda choice: ", ".join(
        f"{path.split('.')[-1]}={format_setting(value)}" for path, value in choice.items()
    )
    cells = [
        StudyRun(f"{label} with {label_of(choice)}", dataclasses.replace(run.overridden(choice), seed=APART), "tuning")
        for label, run in runs.items()
        for choice in grid
    ]
    notes = [
        f"{', '.join(path.split('.')[-1] for path in grid[0])} chosen by the loss on every other validation batch, "
        f"with seed {APART}; reported on the other batches"
    ]
    if not study.corpus(cells[0]).divided:
        notes.append("the validation data is one batch: what was tuned on it is reported on it too")
    results, chosen = iter(study.run(cells)), {}
    for label in runs:
        own = [next(results) for _ in grid]
        metric_values(own, METRIC)
        scores = [r.validation[METRIC] if r.status == "finished" else math.inf for r in own]
        best = min(range(len(grid)), key=scores.__getitem__)
        chosen[label] = dict(grid[best])
        if scores[best] == math.inf:
            notes.append(f"{label} diverged with every value that was tried")
            continue
        for path, value in grid[best].items():
            tried = sorted({choice[path] for choice in grid if isinstance(choice[path], int | float)})
            if len(tried) > 1 and value in (tried[0], tried[-1]):
                best = f"{path.split('.')[-1]} of {label}, {format_setting(value)}"
                notes.append(f"the best {best}, is at the edge of what was tried")
    return chosen, notes


def _ranked(
    by_label: Mapping[str, tuple[RunResult, ...]],
    changes: Mapping[str, Mapping[str, Any]],
    tuned: Mapping[str, Mapping[str, Any]],
    per_step: int,
) -> tuple[ComparisonRow, ...]:
    """A row a model, the lowest mean loss first."""
    metric_values([result for own in by_label.values() for result in own], METRIC)
    values = {
        label: {r.cell.experiment.seed: r.validation[METRIC] for r in own if r.status == "finished"}
        for label, own in by_label.items()
    }
    means = {label: interval(list(own.values())) if own else None for label, own in values.items()}
    order = sorted(by_label, key=lambda label: math.inf if means[label] is None else means[label].mean)
    best = values[order[0]]
    rows = []
    for label, (difference, p) in zip(order, [(None, None), *against([values[one] for one in order[1:]], best)]):
        own = by_label[label]
        times = sorted(result.step_seconds for result in own if result.step_seconds is not None)
        rows.append(
            ComparisonRow(
                label=label,
                changes=changes[label],
                results=own,
                values=values[label],
                mean=means[label],
                difference=difference,
                p=p,
                tuned=tuned[label],
                units=own[0].cell.experiment.steps * per_step,
                step_seconds=times[len(times) // 2] if times else None,
            )
        )
    return tuple(rows)


def _notes(rows: Sequence[ComparisonRow], seeds: int) -> list[str]:
    """Notes on the results for the reader."""
    if seeds < LEAST:
        count = "1 seed" if seeds == 1 else f"{seeds} seeds"
        found = [f"{count} a model: no interval from fewer than {LEAST}"]
    else:
        found = ["intervals: 95 %, Student's t; differences to the best paired by seed; p by Holm's correction"]
    for i, row in enumerate(rows):
        same = [other.label for other in rows[:i] if other.results[0].cell.experiment == row.results[0].cell.experiment]
        if same:
            found.append(f"{row.label} is the same model as {same[0]} under this budget, so their runs are the same")
        if row.changes:
            settings = ", ".join(f"{path}={format_setting(value)}" for path, value in row.changes.items())
            found.append(f"{row.label}, fitted to the task and the budget: {settings}")
        for result in row.diverged:
            found.append(f"{row.label}, seed {result.cell.experiment.seed} diverged: {result.reason}")
    return found
