"""Answers of a regression over their targets."""

from typing import Any

import numpy as np


def regression_figure(answers: np.ndarray, targets: np.ndarray) -> Any:
    """A figure of answers over targets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    low, high = float(targets.min()), float(targets.max())
    axes.plot([low, high], [low, high], color="grey", linewidth=0.8, zorder=0)
    for i in range(answers.shape[1]):
        axes.scatter(targets[:, i], answers[:, i], s=5, alpha=0.5, color=f"C{i}", linewidths=0)
    error = float(np.mean(np.square(answers - targets)))
    axes.set_title(
        f"{len(answers)} validation rows: mean squared error {error:.3g}, variance {targets.var():.3g}", size=9
    )
    axes.set(xlabel="target", ylabel="answer")
    return figure
