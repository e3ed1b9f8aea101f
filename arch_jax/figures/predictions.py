"""Images under the classes that a classifier predicts for them."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.canvas import new_figure


@component("predictions", kind="figure")
@dataclasses.dataclass(frozen=True)
class Predictions(Figure):
    """A grid of validation images, each under its predicted class; wrong ones in red.

    Attributes:
      count: images.
    """

    of_data: ClassVar[tuple[str, ...]] = ("classes",)
    arrays: ClassVar[tuple[str, ...]] = ("images", "labels")

    count: int = 48

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"count is {self.count}; expected at least 1")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        images, labels, guesses = [], [], []
        for batch in data.validation():
            real = np.flatnonzero(batch["weights"])
            guesses.extend(np.argmax(task.outputs(variables, *task.arguments(batch)), axis=-1)[real])
            images.extend(np.asarray(batch["images"])[real])
            labels.extend(np.asarray(batch["labels"])[real])
            if len(labels) >= 8 * self.count:
                break
        names = data.class_names or [str(i) for i in range(task.model.classes)]
        return {"predictions": predictions_figure(images, labels, guesses, names, self.count)}


def predictions_figure(images: list, labels: list, guesses: list, names: Any, count: int) -> Any:
    """A figure of `count` images under their predicted classes.

    At most a quarter are wrong ones, which come last: among a few hundred images, a good classifier's mistakes would
    otherwise not be seen.
    """
    wrong = [i for i in range(len(labels)) if labels[i] != guesses[i]]
    right = [i for i in range(len(labels)) if labels[i] == guesses[i]]
    mistakes = wrong[: max(count // 4, count - len(right))]
    chosen = [*right[: count - len(mistakes)], *mistakes]
    columns = min(max(6, len(chosen)), 8 if any(len(str(name)) > 5 for name in names) else 12)
    rows = max(1, -(-len(chosen) // columns))
    figure = new_figure(figsize=(columns * 0.95, rows * 1.2 + 0.5), layout="constrained")
    figure.suptitle(f"{len(wrong)} of the first {len(labels)} validation images are misclassified", size=10)
    for place in range(rows * columns):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_axis_off()
        if place >= len(chosen):
            continue
        i = chosen[place]
        image = np.asarray(images[i], np.float32)
        low, high = image.min(), image.max()
        image = (image - low) / (high - low if high > low else 1)
        axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", interpolation="nearest")
        fine = labels[i] == guesses[i]
        text = f"{names[guesses[i]]}" if fine else f"{names[guesses[i]]}\n(is {names[labels[i]]})"
        axes.set_title(text, size=7, color="black" if fine else "red", pad=2)
        if not fine:
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[])
            for side in axes.spines.values():
                side.set(color="red", linewidth=2)
    return figure
