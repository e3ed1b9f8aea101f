"""The norm of an answer's gradient against the distance in time."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def reach_figure(norms: Mapping[str, Any]) -> Any:
    """A figure of such norms over the distance, on a logarithmic axis.

    Args:
      norms: name -> what `gradient_by_distance` gave.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in norms.items():
        curve = np.asarray(curve, np.float64)
        # On a logarithmic axis 0 has no place: there the curve ends.
        axes.plot(np.arange(len(curve)), np.where(curve > 0, curve, np.nan), label=name, linewidth=1)
    axes.set_yscale("log")
    axes.set(xlabel="times before the last one", ylabel="norm of the answer's gradient")
    axes.set_title("how far back the answer's gradient reaches, mean over validation rows", size=9)
    axes.legend(fontsize=8)
    return figure
