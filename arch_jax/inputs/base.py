"""The protocol of example inputs, and what most kinds share."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax

Batch = Mapping[str, Any]  # arrays, or their shapes


@runtime_checkable
class Inputs(Protocol):
    """Makes example batches for a model: real ones from a key, abstract ones under `jax.eval_shape`."""

    #: What of a batch the model sees; the rest is for the objective.
    names: tuple[str, ...]

    def batch(self, module: nn.Module, size: int, key: jax.Array) -> dict[str, jax.Array]:
        """A batch of `size` examples as the model's objective takes it."""
        ...

    def resized(self, module: nn.Module) -> "Inputs":
        """The same for a tiny module: cut to what it can take."""
        ...

    def arguments(self, batch: Batch) -> tuple:
        """The arguments that the model is called with."""
        ...

    def permuted(self, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """The batch in another order that means the same, and where each row of the outputs then comes from."""
        ...


class Rows:
    """Examples on the leading axis of every array: what most kinds of inputs share."""

    def resized(self, module: nn.Module) -> "Rows":
        """As it is: these inputs do not grow with a model's size."""
        return self

    def arguments(self, batch: Batch) -> tuple:
        """The arrays that the model sees, in order."""
        return tuple(batch[name] for name in self.names)

    def permuted(self, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """The examples in another order."""
        order = jax.random.permutation(key, len(batch[self.names[0]]))
        return {name: x[order] for name, x in batch.items()}, order
