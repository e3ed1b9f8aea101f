"""Pictures side by side, for a person to look at."""

from typing import Any

import numpy as np


def picture_grid(rows: dict[str, np.ndarray], title: str = "") -> Any:
    """A figure with one row of pictures under each name; pixels below 0 are black and above 1 white.

    Args:
      rows: name -> "pictures height width channels", as many in each row.
      title: above all of them.
    """
    from matplotlib.figure import Figure

    count = max(len(pictures) for pictures in rows.values())
    figure = Figure(figsize=(max(4.0, 0.62 * count), 0.72 * len(rows) + 0.5), layout="constrained")
    figure.suptitle(title, size=10)
    for row, (name, pictures) in enumerate(rows.items()):
        for column in range(count):
            axes = figure.add_subplot(len(rows), count, row * count + column + 1)
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(name, size=7, rotation=0, ha="right", va="center")
            if column < len(pictures):
                picture = np.clip(np.asarray(pictures[column], np.float32), 0, 1)
                picture = picture[..., 0] if picture.shape[-1] == 1 else picture
                axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            else:
                axes.set_axis_off()
    return figure


def validation_pictures(data: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first validation pictures, as the data gives them, and their labels."""
    pictures, labels = [], []
    for batch in data.validation():
        real = np.flatnonzero(batch["weights"])
        pictures.extend(np.asarray(batch["images"])[real])
        labels.extend(np.asarray(batch["labels"])[real])
        if len(pictures) >= count:
            break
    return np.stack(pictures[:count]), np.stack(labels[:count])
