"""Tables and figures of an ablation."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arch_jax.figures.canvas import new_figure
from arch_jax.study.ablate.results import Ablation, AblationRow
from arch_jax.study.formatting import COLOURS, save
from arch_jax.study.statistics import interval


def ablation_rows(ablation: Ablation) -> list[dict[str, Any]]:
    """The table of an ablation, a row a variant, in numbers."""
    rows = []
    for data in ablation.to_json()["variants"]:
        mean, difference = data["mean"] or {}, data["difference"] or {}
        rows.append(
            {
                "variant": data["variant"],
                "seeds": len(data["values"]),
                "diverged": len(data["diverged"]),
                **{f"{ablation.metric}_{name}": mean.get(name) for name in ("mean", "low", "high")},
                **{f"difference_{name}": difference.get(name) for name in ("mean", "low", "high")},
                "p_holm": data["p_holm"],
                **{name: data[name] for name in ("parameters", "flops_per_step", "seconds_per_step", "peak_bytes")},
            }
        )
    return rows


def draw_curves(ablation: Ablation, path: Path) -> Path:
    """Training loss and the validation metric over the steps: means over seeds, with intervals or the range.

    The band is the 95 % interval from 3 seeds on, and the range of the seeds below that.
    """
    figure = new_figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, row in enumerate(ablation.rows):
        finished = [result for result in row.results if result.status == "finished"]
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3]}
        steps, losses = _together([dict(result.curve) for result in finished])
        if len(steps):
            width = max(1, len(steps) // 40)
            windows = [[x for one in losses[max(0, k - width + 1) : k + 1] for x in one] for k in range(len(steps))]
            left.plot(steps, [sum(one) / len(one) for one in windows], label=row.variant.label, linewidth=1.3, **style)
        metric = ablation.metric
        steps, checks = _together([{step: m[metric] for step, m in r.checks if metric in m} for r in finished])
        if len(steps):
            right.plot(steps, [sum(one) / len(one) for one in checks], marker="o", markersize=3.5, **style)
            low, high = zip(*(_band(one) for one in checks))
            right.fill_between(steps, low, high, color=style["color"], alpha=0.13, linewidth=0)
    left.set(xlabel="step", ylabel="training loss", title="training loss (running mean over seeds)")
    seeds = len(ablation.seeds)
    band = "95 % intervals" if seeds >= 3 else "range"
    right.set(xlabel="step", ylabel=f"validation {metric}", title=f"validation {metric} ({seeds} seeds, {band})")
    for one in (left, right):
        one.grid(alpha=0.25)
    if left.lines:
        left.legend(frameon=False, fontsize=8)
    figure.suptitle(f"ablation of {ablation.experiment}")
    return save(figure, path)


def draw_bars(ablation: Ablation, path: Path) -> Path:
    """Every seed's value with the mean's interval, and beside it the paired differences to the baseline, as bars."""
    rows = ablation.rows
    height = 1.4 + 0.42 * len(rows)
    figure = new_figure(figsize=(11, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for y, row in enumerate(rows):
        colour = COLOURS[y % len(COLOURS)]
        left.plot(list(row.values.values()), [y] * len(row.values), "o", color=colour, alpha=0.35, markersize=5)
        if row.mean is not None:
            left.errorbar(row.mean.mean, y, xerr=row.mean.half, fmt="D", color=colour, capsize=4, markersize=5)
        else:
            left.text(0.02, y, "diverged", transform=left.get_yaxis_transform(), va="center", color="#D55E00")
        if row.difference is not None:
            right.barh(y, row.difference.mean, 0.55, color=colour, alpha=0.55)
            right.errorbar(row.difference.mean, y, xerr=row.difference.half, fmt="none", color="black", capsize=4)
    if rows[0].mean is not None:
        left.axvline(rows[0].mean.mean, color="black", linewidth=0.7, linestyle=":")
    right.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(range(len(rows)), [_lettered(row) for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)  # the baseline on top
    has = "mean and 95 % interval" if len(ablation.seeds) >= 3 else "mean"
    left.set(xlabel=f"validation {ablation.metric}", title=f"every seed, {has}")
    right.set(xlabel=f"difference in {ablation.metric} to the baseline", title="paired by seed")
    for one in (left, right):
        one.grid(alpha=0.25, axis="x")
    figure.suptitle(f"ablation of {ablation.experiment}")
    return save(figure, path)


def _lettered(row: AblationRow) -> str:
    return row.variant.label + (f" ({len(row.diverged)} diverged)" if row.diverged and row.mean is not None else "")


def _together(curves: Sequence[Mapping[int, float]]) -> tuple[list[int], list[list[float]]]:
    """The steps that any of the curves has, and at each the values of those that have it."""
    steps = sorted({step for curve in curves for step in curve})
    return steps, [[curve[step] for curve in curves if step in curve] for step in steps]


def _band(values: Sequence[float]) -> tuple[float, float]:
    found = interval(values)
    if found.low is None or found.high is None or not math.isfinite(found.high):
        return min(values), max(values)
    return found.low, found.high
