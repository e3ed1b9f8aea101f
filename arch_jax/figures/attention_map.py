"""Attention over the source for each target token, drawn as in Bahdanau et al. 2014 (1409.0473, figure 3)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.figures.base import Figure
from arch_jax.figures.canvas import new_figure


@component("attention_map", kind="figure")
@dataclasses.dataclass(frozen=True)
class AttentionMap(Figure):
    """Attention weights over the source of validation pairs, under teacher forcing; nothing of models without them.

    Attributes:
      count: pairs.
    """

    of_objective: ClassVar[tuple[str, ...]] = ("attends",)

    count: int = 4

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"count is {self.count}; expected at least 1")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        if not task.attends:
            return {}
        few = {name: jnp.asarray(array[: self.count]) for name, array in next(iter(data.validation())).items()}
        weights = np.asarray(_attention(task.model, variables, *task.arguments(few)))
        word = lambda token: "end" if token == data.stop else data.decode(np.asarray([token])).strip() or "_"
        maps, sources, targets = [], [], []
        for i, matrix in enumerate(weights):
            real, here = np.asarray(few["source_mask"][i]), np.asarray(few["weights"][i]) > 0
            if here.any():
                maps.append(matrix[here][:, real])
                sources.append([word(token) for token in np.asarray(few["source"][i])[real]])
                targets.append([word(token) for token in np.asarray(few["labels"][i])[here]])
        return {"alignment": alignment_figure(maps, sources, targets)}


@functools.partial(jax.jit, static_argnums=0)
def _attention(model: Any, variables: Any, source: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    return model.apply(variables, source, target, mask, method="attention")


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
    columns = 2 if len(weights) > 1 else 1
    rows = -(-len(weights) // columns)
    figure = new_figure(figsize=(5.2 * columns, 4.8 * rows), layout="constrained")
    for i, (matrix, source, target) in enumerate(zip(weights, sources, targets)):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(matrix, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.xaxis.tick_top()
        # A token may hold a dollar sign, which is no mathematics.
        axes.set_xticks(range(len(source)), source, rotation=90, size=7, parse_math=False)
        axes.set_yticks(range(len(target)), target, size=7, parse_math=False)
    return figure
