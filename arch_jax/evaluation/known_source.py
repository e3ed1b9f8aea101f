"""Masked-token prediction against the source that made the data, whose entropy is known."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.evaluation.base import Measure
from arch_jax.fields import component
from arch_jax.ops.losses import cross_entropy


@component("known_source", kind="measure")
@dataclasses.dataclass(frozen=True)
class KnownSource(Measure):
    """Excess of a model's loss over that of the best predictor of a known source (`arch_jax.Markov`).

    Gives, where each token is chosen independently, and nothing otherwise:

        ideal_loss   nats a chosen token of the predictor that knows source and corruption, on the very tokens of
                     `evaluate`
        excess       the model's loss above it, as a share
        last_loss    nats of each row's last token, the only one masked, whose least expectation is the entropy rate
        last_excess  how far that is above -log P(x_t | x_{t-1}) of the same tokens, as a share
    """

    of_objective: ClassVar[tuple[str, ...]] = ("corrupted", "selection")

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, float]:
        if data.ideal is None or task.selection != "independent":
            return {}
        found: dict[str, list] = {name: [] for name in ("model", "ideal", "last", "known")}
        for batch in data.validation():
            tokens, rows = np.asarray(batch["tokens"]), np.asarray(batch["weights"]) > 0
            seen, chosen = map(np.asarray, task.corrupted(batch, task.fixed_key(batch)))
            chosen = chosen & rows[:, None]
            found["model"].append(_nats(_logits(task, variables, batch, seen), tokens)[chosen])
            ideal = data.ideal(seen, task.share, task.masked, task.random)
            found["ideal"].append(-np.take_along_axis(ideal, tokens[..., None], -1)[chosen])
            last = tokens.copy()
            last[:, -1] = task.mask_id
            found["last"].append(_nats(_logits(task, variables, batch, last), tokens)[rows, -1])
            # No share is chosen, and what is seen is true: the law of a token of which all before it are known.
            known = data.ideal(last, 0.0, 1.0, 0.0)
            found["known"].append(-np.take_along_axis(known, tokens[..., None], -1)[rows, -1])
        mean = {name: float(np.concatenate([np.ravel(part) for part in parts]).mean()) for name, parts in found.items()}
        return {
            "ideal_loss": mean["ideal"],
            "excess": mean["model"] / mean["ideal"] - 1,
            "last_loss": mean["last"],
            "last_excess": mean["last"] / mean["known"] - 1,
        }


@functools.partial(jax.jit, static_argnums=0)
def _logits(task: Any, variables: Any, batch: Any, seen: Any) -> jax.Array:
    return task.model.apply(variables, *task.arguments({**batch, "tokens": seen}))["logits"]


def _nats(logits: jax.Array, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(cross_entropy(logits, jnp.asarray(tokens)), np.float64)
