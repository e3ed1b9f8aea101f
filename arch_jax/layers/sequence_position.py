"""The position of each row of a sequence that is fed in parts: the part that all states share."""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Int

from arch_jax.ops.segments import runs_and_positions


@flax.struct.dataclass
class SequencePosition:
    """Segment bookkeeping of a state.

    Attributes:
      last_id: the last segment id, "batch".
      last_run: the number of runs of equal ids, "batch".
      last_position: the position of the last token in its run, -1 before the first, "batch".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    last_id: Any
    last_run: Any
    last_position: Any


def at_start(batch: int) -> SequencePosition:
    """The position before the first token."""
    zeros = jnp.zeros((batch,), jnp.int32)
    return SequencePosition(zeros, zeros, zeros - 1)


def advanced(
    at: SequencePosition, segment_ids: Int[Array, "batch time"]
) -> tuple[Int[Array, "batch time"], Int[Array, "batch time"], SequencePosition]:
    """Run and position of each token of a part, and each row's position after it; ids of 0 are padding."""
    run, position, after = runs_and_positions(segment_ids, at.last_id, at.last_run, at.last_position)
    return run, position, SequencePosition(*after)
