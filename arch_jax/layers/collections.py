"""Rules for collections that training updates without a gradient, declared next to the layer that makes them.

Batch statistics, codebooks, a router's biases, spectral norms, image buffers. Blending a buffer or averaging a count
would be a fault, so each collection declares how it enters a moving average of the parameters, and how the values of
several devices become one under `pmap`. (Under `jit`, arrays are global and there is one value.)
"""

import dataclasses
from typing import Any

import jax

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.precision import like

_AVERAGES = ("copy", "average")
_DEVICES = ("mean", "sum", "replicate", "shard")


@dataclasses.dataclass(frozen=True)
class CollectionRule:
    """The rule of a collection.

    Attributes:
      average: the collection evaluated with averaged parameters: the collection as it is ("copy"), or its own
        moving average with the same decay ("average").
      devices: the value after a step under `pmap`: the mean of all devices' values ("mean"); the old value
        plus the sum of all changes ("sum"), for counts; its own value, which is the same everywhere ("replicate"), or
        is not to be mixed ("shard").
    """

    average: str = "copy"
    devices: str = "mean"

    def __post_init__(self) -> None:
        for name, valid in (("average", _AVERAGES), ("devices", _DEVICES)):
            if getattr(self, name) not in valid:
                raise unknown(f"rule {name}", str(getattr(self, name)), valid)


_RULES: dict[str, CollectionRule] = {}


def declare(collection: str, **rule: Any) -> None:
    """Declares the rule of a collection; keywords are those of `CollectionRule`.

    Raises:
      UsageError: it is already declared otherwise.
    """
    new = CollectionRule(**rule)
    if _RULES.setdefault(collection, new) != new:
        raise UsageError(f"the collection {collection!r} is declared as {_RULES[collection]} already, and now as {new}")


def rule(collection: str) -> CollectionRule:
    """The rule of a collection; an undeclared one has that of batch statistics."""
    return _RULES.get(collection, CollectionRule())


def averaged(others: dict[str, Any]) -> dict[str, Any]:
    """The collections of a state that are averaged with the parameters."""
    return {kind: tree for kind, tree in others.items() if rule(kind).average == "average"}


def evaluated(others: dict[str, Any], average: dict[str, Any]) -> dict[str, Any]:
    """The collections that are evaluated with averaged parameters."""
    return {kind: like(average[kind], tree) if kind in average else tree for kind, tree in others.items()}


def over_devices(before: dict[str, Any], after: dict[str, Any], axis: str) -> dict[str, Any]:
    """The collections after a step, from every device's own, inside a mapped axis.

    Args:
      before: as they were before the step.
      after: as this device has them.
      axis: over the devices.
    """

    def one(kind: str, tree: Any) -> Any:
        devices = rule(kind).devices
        if devices == "mean":
            return jax.tree.map(lambda x: jax.lax.pmean(x, axis).astype(x.dtype), tree)
        if devices == "sum":
            return jax.tree.map(lambda old, new: old + jax.lax.psum(new - old, axis), before[kind], tree)
        return tree

    return {kind: one(kind, tree) for kind, tree in after.items()}
