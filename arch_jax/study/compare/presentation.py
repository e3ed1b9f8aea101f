"""Presentation of a comparison: what was equal, the table, and the figures."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arch_jax import fields
from arch_jax.experiment import Experiment
from arch_jax.figures.canvas import library, new_figure
from arch_jax.study.compare.results import Comparison, ComparisonRow
from arch_jax.study.formatting import COLOURS, format_count, format_duration, format_size, save, write_csv

#: Two counts within 2 % of a target are at most this far apart; times are called equal up to a tenth.
_CLOSE = 1.02 / 0.98 - 1
_CLOSE_TIME = 0.1
#: End of a line: across, up, its label and its colour.
End = tuple[float | int, float | int, str, str]
#: Costs of a model, by the names in JSON.
_COSTS = ("parameters", "flops_per_step", "flops", "steps", "units", "seconds_per_step", "seconds", "peak_bytes")


def held_and_not(
    rows: Sequence[ComparisonRow], experiment: Experiment, kind: str, unit: str, per_step: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lists of what was equal for all models and what was not, as sentences with the numbers seen.

    Args:
      rows: of the comparison.
      experiment: the task.
      kind: of the budget; only a budget of seconds holds times equal.
      unit: of a batch.
      per_step: units in a step.
    """
    source = getattr(experiment.data, "source", fields.to_json(experiment.data)["module"])
    held = [f"data: {source}, {per_step:,} {unit} a step, in the same order for the same seed"]
    unequal: list[str] = []
    named = sorted({one.name for one in experiment.optimizers.values()})
    held.append(f"optimizer: {', '.join(named)}, with the same settings but for what is named below")

    models = [row.results[0].cell.experiment.model for row in rows]
    for name in ("dtype", "depth", "width"):
        values = [fields.to_json(getattr(model, name, None)) for model in models]
        if None not in values:
            (held if len(set(values)) == 1 else unequal).append(f"{name}: {_range(values, str)}")
    times_close = _CLOSE_TIME if kind == "seconds" else -1
    figures: list[tuple[str, Sequence[Any], Callable[[Any], str], float]] = [
        ("parameters", [row.parameters for row in rows], "{:,}".format, _CLOSE),
        ("steps", [row.steps for row in rows], "{:,}".format, 0),
        (f"{unit} seen", [row.units for row in rows], "{:,}".format, 0),
        ("FLOPs a step", [row.step_flops for row in rows], format_count, _CLOSE),
        ("FLOPs of the training", [row.flops for row in rows], format_count, _CLOSE),
        (
            "time of the training",
            [row.seconds for row in rows],
            format_duration,
            times_close,
        ),
        ("memory of the train program", [row.peak_bytes for row in rows], format_size, 0),
    ]
    for name, values, show, close in figures:
        if None in values:
            unequal.append(f"{name}: not known for all")
        else:
            apart = max(values) / max(min(values), 1e-9) - 1
            (held if apart <= close else unequal).append(
                f"{name}: {_range(values, lambda n, show=show: show(n).strip())}"
            )
    for path in rows[0].tuned:
        name, values = path.split(".")[-1], [fields.to_json(row.tuned[path]) for row in rows]
        same = len({str(value) for value in values}) == 1
        each = ", ".join(f"{value} for {row.label}" for value, row in zip(values, rows))
        (held if same else unequal).append(f"{name}: {values[0] if same else each}, chosen for each model")
    for player, one in experiment.optimizers.items():
        path = "optimizer.learning_rate"
        if path not in rows[0].tuned:
            of = f" of {player}" if len(experiment.optimizers) > 1 else ""
            held.append(f"learning_rate{of}: {one.learning_rate:g}, the experiment's; none was chosen for each model")
    return tuple(held), tuple(unequal)


def _range(values: Sequence[Any], show: Callable[[Any], str]) -> str:
    """One value, or the range with how far its ends are apart."""
    if len(set(values)) == 1:
        return show(values[0])
    if any(isinstance(value, str) for value in values):
        return ", ".join(map(show, dict.fromkeys(values)))
    low, high = min(values), max(values)
    apart = high / low - 1 if low else math.inf
    return f"{show(low)} to {show(high)} ({f'{apart:.1%} apart' if apart < 1 else f'{high / low:.3g} times'})"


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The ranking as (headers, rows), all as text."""
    tuned = [path.split(".")[-1] for path in comparison.rows[0].tuned]
    headers = ["", "model", "loss", "difference", "p", "parameters", "FLOPs a step", "FLOPs", comparison.unit,
               "time a step", *tuned, "diverged"]  # fmt: skip
    rows = []
    for rank, row in enumerate(comparison.rows, start=1):
        rows.append(
            [
                str(rank),
                row.label,
                "diverged" if row.mean is None else str(row.mean),
                "-" if row.difference is None else str(row.difference),
                "-" if row.p is None else f"{row.p:.2g}",
                format_count(row.parameters).strip(),
                format_count(row.step_flops).strip(),
                format_count(row.flops).strip(),
                format_count(row.units).strip(),
                format_duration(row.step_seconds),
                *(str(fields.to_json(value)) for value in row.tuned.values()),
                f"{len(row.diverged)} of {len(row.results)}" if row.diverged else "-",
            ]
        )
    return headers, rows


def write_comparison_csv(comparison: Comparison, path: Path) -> Path:
    """The ranking in numbers, a row a model.

    Raises:
      RunError: it can't be written.
    """
    rows = []
    for data in comparison.to_json()["models"]:
        mean, difference = data["mean"] or {}, data["difference"] or {}
        rows.append(
            {
                "rank": data["rank"],
                "model": data["model"],
                "seeds": len(data["values"]),
                "diverged": len(data["diverged"]),
                **{f"loss_{name}": mean.get(name) for name in ("mean", "low", "high")},
                **{f"difference_{name}": difference.get(name) for name in ("mean", "low", "high")},
                "p_holm": data["p_holm"],
                **{name: data[name] for name in _COSTS},
                **{path.split(".")[-1]: value for path, value in data["tuned"].items()},
            }
        )
    return write_csv(path, rows)


def draw_comparison(comparison: Comparison, path: Path) -> Path:
    """Validation loss against FLOPs and against time during training, and at its end against parameters.

    Lines and points are means over the seeds; bars are 95 % intervals, from 3 seeds on.

    Raises:
      RunError: the figure can't be written.
    """
    figure = new_figure(figsize=(15, 5), layout="constrained")
    axes = figure.subplots(1, 3)
    drawn: list[list[End]] = [[], [], []]
    for i, row in enumerate(comparison.rows):
        colour = COLOURS[i % len(COLOURS)]
        steps, losses = _means(row)
        for axis, ends, cost in ((axes[0], drawn[0], row.step_flops), (axes[1], drawn[1], row.step_seconds)):
            if steps and cost is not None:
                along = [step * cost for step in steps]
                axis.plot(along, losses, color=colour, marker="o", markersize=4, linewidth=1.6)
                ends.append((along[-1], losses[-1], row.label, colour))
        if row.mean is not None:
            axes[2].errorbar(row.parameters, row.mean.mean, yerr=row.mean.half, fmt="o", color=colour, capsize=4)
            drawn[2].append((row.parameters, row.mean.mean, row.label, colour))
    titles = ("FLOPs of the training so far", "seconds of training so far", "parameters")
    for axis, ends, title in zip(axes, drawn, titles):
        axis.set(xlabel=title, ylabel="validation loss")
        axis.xaxis.set_major_formatter(library("ticker").EngFormatter())
        axis.grid(alpha=0.25, which="both")
        axis.spines[["top", "right"]].set_visible(False)
        _fit_limits(axis, ends)
    if not drawn[1]:
        axes[1].text(0.5, 0.5, "no step was timed", ha="center", va="center", transform=axes[1].transAxes)
    figure.draw_without_rendering()  # the layout decides how much room a label has
    for axis, ends in zip(axes, drawn):
        _label(axis, ends)
    budget, seeds = comparison.budget, len(comparison.seeds)
    kind = comparison.unit if budget.kind == "tokens" else budget.kind
    lost = sum(row.mean is None for row in comparison.rows)
    figure.suptitle(
        f"{comparison.experiment}: {len(comparison.rows)} models, {format_count(budget.amount).strip()} {kind} each; "
        f"{'mean of ' if seeds > 1 else ''}{seeds} seed{'s' if seeds > 1 else ''}"
        + (f"; {lost} diverged" if lost else "")
    )
    return save(figure, path)


def _means(row: ComparisonRow) -> tuple[list[int], list[float]]:
    """Steps and the mean validation loss of the finished seeds at each."""
    finished = [dict(result.checks) for result in row.results if result.status == "finished"]
    steps = [step for step in (sorted(finished[0]) if finished else []) if all(step in checks for checks in finished)]
    return steps, [sum(checks[step]["loss"] for checks in finished) / len(finished) for step in steps]


def _fit_limits(axis: Any, ends: Sequence[End]) -> None:
    """Room on the right for the labels; logarithmic where the costs are far apart."""
    if not ends:
        return
    points = [x for line in axis.lines for x in line.get_xdata() if x > 0]
    low, high = min(points), max(points)
    if high / low > 12:
        axis.set_xscale("log")
        axis.set_xlim(low / 1.3, high * (high / low) ** 0.55)
    else:
        spread = max(high - low, 0.1 * high)
        axis.set_xlim(low - 0.08 * spread, high + 0.75 * spread)


def _label(axis: Any, ends: Sequence[End]) -> None:
    """Each line's name beside its end, moved apart where they would cover one another."""
    if not ends:
        return
    texts = {label: "\n".join(textwrap.wrap(label.replace(",", ", "), 24)) for _, _, label, _ in ends}
    inverse, height = axis.transAxes.inverted(), axis.get_window_extent().height
    line = 11.5 * axis.figure.dpi / 72 / height  # of a line of text, as a fraction of the panel
    places = []
    for x, y, label, colour in ends:
        across, up = inverse.transform(axis.transData.transform((x, y)))
        places.append([up, across, label, colour, line * (texts[label].count("\n") + 1)])
    places.sort(key=lambda place: place[0])
    centres = [place[0] for place in places]
    for _ in range(60):
        for i in range(len(places) - 1):
            over = (places[i][4] + places[i + 1][4]) / 2 - (centres[i + 1] - centres[i])
            if over > 0:
                centres[i], centres[i + 1] = centres[i] - over / 2, centres[i + 1] + over / 2
        centres = [max(centre, place[4] / 2) for centre, place in zip(centres, places)]
    right = max(place[1] for place in places) + 0.05
    for centre, (up, across, label, colour, _) in zip(centres, places):
        axis.annotate(
            texts[label],
            (across, up),
            (right, centre),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=8.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6},
        )
