"""Scaling laws of a trained family: a model in several sizes, each trained on several numbers of tokens."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.experiment import Experiment
from arch_jax.study.runs.run import RunResult, StudyRun
from arch_jax.study.runs.steps import lasting
from arch_jax.study.runs.study import Study, metric_values, seeded
from arch_jax.study.scaling.law import Kaplan, Law, fit, fit_kaplan
from arch_jax.study.scaling.measurements import Measurements
from arch_jax.study.sizing import parameters, scaled


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of the family.

    Attributes:
      parameters: N.
      tokens: D, as they were trained on (or examples, for data without tokens).
      flops: of the training, in matrix products, as counted; 6 N D is an approximation of it.
      changes: the fields that set the model's size.
      result: of the run.
    """

    parameters: int
    tokens: int
    flops: int
    changes: dict[str, Any]
    result: RunResult


@dataclasses.dataclass(frozen=True)
class Family:
    """A trained family and its laws.

    Attributes:
      members: the runs, small to large; diverged ones too.
      law: Hoffmann's, of those that finished.
      kaplan: Kaplan's, of the same.
      notes: for the reader.
    """

    members: tuple[Member, ...]
    law: Law
    kaplan: Kaplan
    notes: tuple[str, ...]

    @property
    def finished(self) -> tuple[Member, ...]:
        """Those with a loss."""
        return tuple(one for one in self.members if one.result.status == "finished")

    @property
    def points(self) -> Measurements:
        """The points that the laws were fitted to."""
        return _points(self.finished)

    def rows(self) -> list[dict[str, Any]]:
        """A row a finished run, as `scaling fit` reads them."""
        return [
            {
                "parameters": one.parameters,
                "tokens": one.tokens,
                "flops": one.flops,
                "loss": one.result.validation["loss"],
                "seed": one.result.cell.experiment.seed,
            }
            for one in self.finished
        ]


def train_family(
    experiment: Experiment,
    study: Study,
    sizes: Sequence[float | int],
    tokens: Sequence[float | int],
    *,
    seeds: int = 1,
    bootstrap: int = 200,
) -> Family:
    """Trains every size on every number of tokens, and fits the laws.

    A size is the experiment's own model deepened and widened in its usual shape, to within 2 %. The schedule ends where
    the tokens do. All else, the learning rate too, is as the experiment has it.

    Args:
      experiment: its model, data and optimizer.
      study: folder of the runs.
      sizes: numbers of parameters; at least 3.
      tokens: numbers of tokens; at least 3.
      seeds: runs of each, every one a point of its own.
      bootstrap: resamples of the points; 0 is no intervals.

    Raises:
      UsageError: too few sizes or tokens for a law, a size that no scaling meets, fewer tokens than a step takes.
      Stopped: the study was asked to stop; what is done is kept.
    """
    sizes, tokens = _distinct("sizes", sizes), _distinct("tokens", tokens)
    corpus = study.corpus(StudyRun("", experiment))
    batch = {name: jax.ShapeDtypeStruct(*facts) for name, facts in corpus.shapes.items()}
    per_step, unit = corpus.units_per_batch, corpus.unit
    count = lambda module: parameters(dataclasses.replace(experiment, model=module), batch)
    plans = []
    for size in sizes:
        found = scaled(experiment.model, size, count)
        for amount in tokens:
            steps = round(amount / per_step)
            if steps < 1:
                raise UsageError(f"tokens is {amount:g}; expected at least {per_step}, which a step takes")
            one = dataclasses.replace(lasting(experiment, steps), model=found.module, evaluate_every=steps)
            plans.append((int(found.value), steps * per_step, found.changes, one))
    cells = [
        (plan, StudyRun(f"{plan[0]:,} parameters, {plan[1]:,} {unit}", one))
        for plan in plans
        for one in seeded(plan[3], seeds)
    ]
    results = study.run([cell for _, cell in cells])
    members = tuple(
        Member(size, amount, result.flops * result.step, changes, result)
        for ((size, amount, changes, _), _), result in zip(cells, results)
    )
    finished = tuple(one for one in members if one.result.status == "finished")
    metric_values([one.result for one in finished], "loss")
    points = _points(finished)
    notes = [
        "held equal: data, batch, optimizer with its learning rate, the schedule's shape; the law is of these",
        *(f"{m.result.cell.label} diverged: {m.result.reason}" for m in members if m.result.status == "diverged"),
    ]
    return Family(members, fit(points, bootstrap=bootstrap), fit_kaplan(points), tuple(notes))


def _points(members: Iterable[Member]) -> Measurements:
    members = list(members)
    return Measurements(
        np.array([one.parameters for one in members], np.float64),
        np.array([one.tokens for one in members], np.float64),
        np.array([one.result.validation["loss"] for one in members], np.float64),
    )


def _distinct(name: str, numbers: Sequence[float | int]) -> list[float | int]:
    """Small to large, each once.

    Raises:
      UsageError: one is not a positive number, or there are fewer than 3.
    """
    for number in numbers:
        if not (number > 0 and np.isfinite(number)):
            raise UsageError(f"{name} has {number}; expected positive numbers")
    found = sorted(set(numbers))
    if len(found) < 3:
        raise UsageError(f"{name} has {len(found)} different numbers; a law needs at least 3")
    return found
