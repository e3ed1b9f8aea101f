"""Images side by side, for a person to look at."""

from typing import Any

import numpy as np

from arch_jax.figures.canvas import new_figure


def image_grid(rows: dict[str, np.ndarray], title: str = "") -> Any:
    """A figure with one row of images under each name; pixels below 0 are black and above 1 white.

    Args:
      rows: name -> "images height width channels", as many in each row.
      title: above all of them.
    """
    count = max(len(images) for images in rows.values())
    figure = new_figure(figsize=(max(4.0, 0.62 * count), 0.72 * len(rows) + 0.5), layout="constrained")
    figure.suptitle(title, size=10)
    for row, (name, images) in enumerate(rows.items()):
        for column in range(count):
            axes = figure.add_subplot(len(rows), count, row * count + column + 1)
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(name, size=7, rotation=0, ha="right", va="center")
            if column < len(images):
                image = np.clip(np.asarray(images[column], np.float32), 0, 1)
                image = image[..., 0] if image.shape[-1] == 1 else image
                axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            else:
                axes.set_axis_off()
    return figure


def validation_images(data: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first validation images, as the data gives them, and their labels."""
    images, labels = [], []
    for batch in data.validation():
        real = np.flatnonzero(batch["weights"])
        images.extend(np.asarray(batch["images"])[real])
        labels.extend(np.asarray(batch["labels"])[real])
        if len(images) >= count:
            break
    return np.stack(images[:count]), np.stack(labels[:count])


def in_rows(images: np.ndarray, most: int = 12) -> dict[str, np.ndarray]:
    """Images cut into rows of at most `most`, each named by the number of its first."""
    return {str(start): images[start : start + most] for start in range(0, len(images), most)}
