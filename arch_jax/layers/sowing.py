"""Losses, metrics and further outputs that a layer reports beside its output, through Linen's `sow`.

The collections are mutable in training only: in evaluation and at initialisation nothing is
written, and no collection of these is ever part of a model's state. An objective collects them under any stack of
layers, scanned, rematerialised or unrolled (`objectives.base.ObjectiveBase.total_loss`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.ops.losses import Pair

#: The collections that training makes mutable.
COLLECTIONS = ("losses", "metrics", "outputs")


def sow_loss(module: nn.Module, name: str, total: Any, weight: Any = 1.0) -> None:
    """Adds total / weight to the training loss. The sums of one layer that is called several times are added up first.

    Args:
      module: the layer.
      name: the loss's name; losses of different layers under one name are added.
      total: a sum, a scalar.
      weight: the divisor.
    """
    _sow(module, "losses", name, total, weight)


def sow_metric(module: nn.Module, name: str, total: Any, weight: Any = 1.0) -> None:
    """Reports total / weight in training; over several layers, the sums divided by the weights' sum."""
    _sow(module, "metrics", name, total, weight)


def sow_output(module: nn.Module, name: str, value: Any) -> None:
    """Passes an array to the objective in training, such as the logits of an auxiliary classifier."""
    if not module.is_initializing():
        module.sow("outputs", name, value, init_fn=lambda: None, reduce_fn=lambda _, new: new)


def _sow(module: nn.Module, collection: str, name: str, total: Any, weight: Any) -> None:
    if module.is_initializing():  # what is sown then would come back as a part of the variables
        return
    pair = (jnp.asarray(total), jnp.asarray(weight, jnp.result_type(total)))
    for part in pair:
        if part.ndim:
            raise UsageError(f"the sown {name!r} has shape {part.shape}; expected a scalar sum and a scalar weight")
    zeros = lambda: (jnp.zeros_like(pair[0]), jnp.zeros_like(pair[1]))
    module.sow(collection, name, pair, init_fn=zeros, reduce_fn=lambda a, b: (a[0] + b[0], a[1] + b[1]))


def losses_of(sown: Any) -> dict[str, jax.Array]:
    """Name -> the sum over layers of total / weight, from the collection "losses"."""
    found: dict[str, jax.Array] = {}
    for name, total, weight in _pairs(sown):
        # A scan over layers stacks their pairs on leading axes.
        value = jnp.sum(jnp.where(weight == 0, 0, total / jnp.where(weight == 0, 1, weight)))
        found[name] = found[name] + value if name in found else value
    return found


def metrics_of(sown: Any) -> dict[str, Pair]:
    """Name -> (sum, weight) over all layers, from the collection "metrics"."""
    found: dict[str, Pair] = {}
    for name, total, weight in _pairs(sown):
        new = (jnp.sum(total), jnp.sum(weight))
        found[name] = tuple(map(jnp.add, found[name], new)) if name in found else new
    return found


def outputs_of(sown: Any) -> list[jax.Array]:
    """The arrays of the collection "outputs", in the order of their paths."""
    return jax.tree.leaves(sown)


def _pairs(sown: Any) -> list[tuple[str, jax.Array, jax.Array]]:
    """(name, totals, weights) of every place, with the axes of scanned layers in front."""
    places: dict[tuple, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(sown)[0]:
        places.setdefault(path[:-1], []).append(leaf)
    return [(str(path[-1].key), *pair) for path, pair in places.items()]
