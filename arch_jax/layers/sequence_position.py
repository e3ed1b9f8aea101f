"""Where each row of a sequence stands that is fed in parts: the part that all states have in common."""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Int

from arch_jax.ops.segments import runs_and_positions


@flax.struct.dataclass
class SequencePosition:
    """What a state remembers of the segments that went by.

    Attributes:
      last_id: the last segment id, "batch".
      last_run: how many runs of equal ids there were, "batch".
      last_position: the position of the last token in its run, -1 before the first, "batch".
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    last_id: Any
    last_run: Any
    last_position: Any


def at_start(batch: int) -> SequencePosition:
    """Before the first token."""
    zeros = jnp.zeros((batch,), jnp.int32)
    return SequencePosition(zeros, zeros, zeros - 1)


def advanced(
    at: SequencePosition, segment_ids: Int[Array, "batch time"]
) -> tuple[Int[Array, "batch time"], Int[Array, "batch time"], SequencePosition]:
    """Run and position of each token of a part, and where each row stands behind it; ids of 0 are padding."""
    run, position, after = runs_and_positions(segment_ids, at.last_id, at.last_run, at.last_position)
    return run, position, SequencePosition(*after)
