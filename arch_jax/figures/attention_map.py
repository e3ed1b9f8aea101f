"""Where a model looks while it writes, drawn as in Bahdanau et al. 2014 (1409.0473, figure 3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


def alignment_figure(
    weights: Sequence[Float[np.ndarray, "_ _"]],
    sources: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]],
) -> Any:
    """A figure of weights over the source: source tokens from left to right, written ones from top to bottom.

    Args:
      weights: one matrix a pair, "target source", in [0, 1]: black is 0, white is 1.
      sources: the source's tokens as text.
      targets: the tokens that were written.
    """
    from matplotlib.figure import Figure

    columns = 2 if len(weights) > 1 else 1
    rows = -(-len(weights) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.8 * rows), layout="constrained")
    for i, (matrix, source, target) in enumerate(zip(weights, sources, targets)):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(matrix, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.xaxis.tick_top()
        # A token may hold a dollar sign, which is no mathematics.
        axes.set_xticks(range(len(source)), source, rotation=90, size=7, parse_math=False)
        axes.set_yticks(range(len(target)), target, size=7, parse_math=False)
    return figure
