"""What a person sees of a study: tables as text and CSV, and the pictures of an ablation."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arch_jax import fields
from arch_jax.train.workdir import write

if TYPE_CHECKING:
    from arch_jax.study.ablate.ablate import Ablation, Row

#: Colours that are told apart by most eyes, and in grey (Okabe & Ito 2008).
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def short(value: Any) -> str:
    """A setting as a person writes it."""
    value = fields.to_json(value)
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def count(number: float | int | None) -> str:
    """Such as 1.23 M; "-" for none."""
    return _scaled(number, ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")))


def size(number: float | int | None) -> str:
    """Bytes, such as 12.3 MB; "-" for none."""
    return "-" if number is None else f"{_scaled(number, ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')))}B"


def duration(seconds: float | None) -> str:
    """Such as 12.3 ms; "-" for none."""
    if seconds is None:
        return "-"
    return (
        f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"
    )


def _scaled(number: float | int | None, units: Sequence[tuple[float, str]]) -> str:
    if number is None:
        return "-"
    for factor, letter in units:
        if abs(number) >= factor:
            return f"{number / factor:.3g} {letter}"
    return f"{number:.3g} "


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows with the same keys as CSV; none is an empty cell.

    Raises:
      RunError: it can't be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue())
    return path


def save(figure: Any, path: Path) -> Path:
    """Writes a figure as PNG, as a whole, and closes it."""
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write(path, buffer.getvalue())
    return path


def ablation_rows(ablation: "Ablation") -> list[dict[str, Any]]:
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


def draw_curves(ablation: "Ablation", path: Path) -> Path:
    """Training loss and the validation metric over the steps: means over seeds, with intervals or the range.

    The band is the 95 % interval from 3 seeds on, and the range of the seeds below that.
    """
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
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


def draw_bars(ablation: "Ablation", path: Path) -> Path:
    """Every seed's figure with the mean's interval, and beside it the paired differences to the baseline, as bars."""
    plt = _pyplot()
    rows = ablation.rows
    height = 1.4 + 0.42 * len(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, height), sharey=True, layout="constrained")
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


def _lettered(row: "Row") -> str:
    return row.variant.label + (f" ({len(row.diverged)} diverged)" if row.diverged and row.mean is not None else "")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _together(curves: Sequence[Mapping[int, float]]) -> tuple[list[int], list[list[float]]]:
    """The steps that any of the curves has, and at each the values of those that have it."""
    steps = sorted({step for curve in curves for step in curve})
    return steps, [[curve[step] for curve in curves if step in curve] for step in steps]


def _band(values: Sequence[float]) -> tuple[float, float]:
    from arch_jax.study.statistics import interval

    found = interval(values)
    if found.low is None or found.high is None or not math.isfinite(found.high):
        return min(values), max(values)
    return found.low, found.high
