"""Presentation of a scaling law: rows of numbers, and a figure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arch_jax.figures.canvas import library, new_figure
from arch_jax.study.formatting import save
from arch_jax.study.scaling.law import Kaplan, Law
from arch_jax.study.scaling.measurements import Measurements

#: A name, its value, and the interval if there is one.
ReportRow = tuple[str, float, tuple[float, float] | None]


def report(law: Law, kaplan: Kaplan | None = None, budgets: Sequence[float | int] = ()) -> list[ReportRow]:
    """Rows of a fitted law: (name, value, interval).

    Args:
      law: its constants, objective and the exponents of the optimum come first.
      kaplan: its constants come next, if given.
      budgets: FLOPs; for each the compute-optimal N and D, tokens a parameter, and the loss there.

    Returns:
      Rows; the interval is the bootstrap's, or None. Budgets have intervals over the resamples that have an optimum.

    Raises:
      UsageError: a budget that is not positive; a law without an optimum.
    """
    rows: list[ReportRow] = [
        (name, getattr(law, name), law.intervals.get(name)) for name in ("E", "A", "B", "alpha", "beta", "a", "b")
    ]
    rows.append(("objective", law.objective, None))
    if kaplan is not None:
        names = ("N_c", "D_c", "alpha_N", "alpha_D", "objective")
        rows += [(f"Kaplan's {name}", getattr(kaplan, name), None) for name in names]
    for budget in budgets:
        resampled = [] if law.resamples is None else [Law(*sample, 0.0, law.count) for sample in law.resamples.tolist()]
        found = [_at(other, budget) for other in resampled if other.alpha > 0 and other.beta > 0]
        names = ("parameters", "tokens", "tokens a parameter", "loss")
        for place, (name, value) in enumerate(zip(names, _at(law, budget))):
            ends = np.percentile([at[place] for at in found], (2.5, 97.5)).tolist() if found else None
            rows.append((f"{name} at {budget:.3g} FLOPs", value, None if ends is None else (ends[0], ends[1])))
    return rows


def draw(points: Measurements, law: Law, path: Path | str) -> None:
    """Writes a PNG: loss against FLOPs with the fitted curves and the compute-optimal frontier, and how well it fits.

    Args:
      points: those that the law was fitted to.
      law: the fitted law.
      path: of the figure.

    Raises:
      RunError: it can't be written.
    """
    figure = new_figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    norm = library("colors").LogNorm(points.parameters.min(), points.parameters.max())
    # The palest colours of the map can't be seen on white.
    colours = library().colormaps["viridis_r"]
    look = {"c": points.parameters, "norm": norm, "cmap": colours, "s": 16, "linewidths": 0.3, "edgecolors": "0.25"}

    sizes = np.unique(points.parameters)
    if len(sizes) > 8:
        sizes = np.geomspace(sizes[0], sizes[-1], 7)
    for size in sizes:
        near = np.abs(np.log(points.parameters / size))
        tokens = points.tokens[near <= max(near.min(), np.log(1.6))]
        along = np.geomspace(tokens.min() / 1.5, tokens.max() * 1.5, 100)
        left.plot(6 * size * along, law.loss(size, along), color=colours(norm(size)), linewidth=1.2, zorder=1)
    shown = left.scatter(points.flops, points.loss, zorder=2, **look)
    if law.alpha > 0 and law.beta > 0:
        budgets = np.geomspace(points.flops.min(), points.flops.max(), 100)
        exponents = f"N ∝ C^{law.a:.2f}, D ∝ C^{law.b:.2f}"
        left.plot(
            budgets, law.loss(*law.optimal(budgets)), "k--", linewidth=1.6, zorder=3, label=f"optimal: {exponents}"
        )
        left.legend(loc="upper right", frameon=False)
    left.set(xscale="log", xlabel="training FLOPs (6 N D)", ylabel="loss (nats)")
    ideal = law.E if law.E > 1e-9 else 0.0  # which the search, in its logarithm, never quite reaches
    left.set_title(
        f"L = {ideal:.4g} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}", fontsize="medium"
    )
    margin = 0.06 * np.ptp(points.loss)
    left.set_ylim(points.loss.min() - 2 * margin, points.loss.max() + margin)

    predicted = law.loss(points.parameters, points.tokens)
    off = 100 * (points.loss / predicted - 1)
    right.axhline(0, color="k", linewidth=0.8, zorder=1)
    right.scatter(predicted, off, zorder=2, **look)
    right.set(xlabel="predicted loss (nats)", ylabel="measured above predicted (%)")
    right.set_title(f"{len(points)} points; half are within {np.median(np.abs(off)):.2g} %", fontsize="medium")
    figure.colorbar(shown, ax=[left, right], label="parameters N", pad=0.01)

    save(figure, Path(path))


def _at(law: Law, budget: float | int) -> tuple[float, float, float, float]:
    """The optimum at a budget: parameters, tokens, tokens a parameter, loss."""
    parameters, tokens = law.optimal(budget)
    return parameters, tokens, tokens / parameters, float(law.loss(parameters, tokens))
