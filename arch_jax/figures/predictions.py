"""Images under the classes that a classifier takes them for."""

from typing import Any

import numpy as np


def predictions(pictures: list, labels: list, guesses: list, names: Any, count: int) -> Any:
    """A figure of `count` pictures under what they were taken for.

    At most a quarter are wrong ones, which come last: among a few hundred, a good classifier's mistakes would else not
    be seen.
    """
    from matplotlib.figure import Figure

    wrong = [i for i in range(len(labels)) if labels[i] != guesses[i]]
    right = [i for i in range(len(labels)) if labels[i] == guesses[i]]
    mistakes = wrong[: max(count // 4, count - len(right))]
    chosen = [*right[: count - len(mistakes)], *mistakes]
    columns = min(max(6, len(chosen)), 8 if any(len(str(name)) > 5 for name in names) else 12)
    rows = max(1, -(-len(chosen) // columns))
    figure = Figure(figsize=(columns * 0.95, rows * 1.2 + 0.5), layout="constrained")
    figure.suptitle(
        f"{len(wrong)} of the first {len(labels)} validation pictures are taken for something else", size=10
    )
    for place in range(rows * columns):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_axis_off()
        if place >= len(chosen):
            continue
        i = chosen[place]
        picture = np.asarray(pictures[i], np.float32)
        low, high = picture.min(), picture.max()
        picture = (picture - low) / (high - low if high > low else 1)
        axes.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", interpolation="nearest")
        fine = labels[i] == guesses[i]
        text = f"{names[guesses[i]]}" if fine else f"{names[guesses[i]]}\n(is {names[labels[i]]})"
        axes.set_title(text, size=7, color="black" if fine else "red", pad=2)
        if not fine:
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[])
            for side in axes.spines.values():
                side.set(color="red", linewidth=2)
    return figure
