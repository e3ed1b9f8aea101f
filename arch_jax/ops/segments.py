"""Packed sequences: the run of equal segment ids that a token belongs to, and its position in the run.

A batch row may hold several documents one after another, told apart by integer ids; id 0 is padding. Mixers that carry
a state (recurrent, or attention with a cache) see a row in chunks, so both questions are answered with a carried state.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from arch_jax.errors import UsageError

__all__ = ["read_where_real", "runs_and_positions", "runs_and_positions_reference"]

State = tuple[Int[Array, "batch"], Int[Array, "batch"], Int[Array, "batch"]]


def read_where_real(x: Array, real: Array | None) -> Array:
    """The array with 0 at padding, so that what stands there enters nothing: 0 * NaN would be NaN.

    Args:
      x: tokens "batch time", or numbers "batch time *features".
      real: True, or a segment id above 0, at what is no padding; "batch time". None is all.
    """
    if real is None:
        return x
    return jnp.where((real > 0).reshape(*real.shape, *(1,) * (x.ndim - 2)), x, 0)


def runs_and_positions(
    segment_ids: Int[Array, "batch time"],
    last_id: Int[Array, "batch"] | None = None,
    last_run: Int[Array, "batch"] | None = None,
    last_position: Int[Array, "batch"] | None = None,
) -> tuple[Int[Array, "batch time"], Int[Array, "batch time"], State]:
    """Numbers the runs of equal ids in every row, and the tokens within each run.

    A run starts wherever the id differs from the last id that was not padding, so 1, 2, 1 are three runs, and padding
    between equal ids does not end one. Feeding a row in chunks through the returned state gives what feeding it whole
    gives.

    Args:
      segment_ids: one integer a token; 0 is padding and leaves the state untouched.
      last_id: the last id that was not padding, 0 for none yet (the default).
      last_run: the number of runs so far, 0 for none yet (the default).
      last_position: the position that the last token had in its run, -1 for none yet (the default).

    Returns:
      run: 1 for the first run of a row, then 2, ...; 0 at padding.
      position: 0 for the first token of a run, counting only tokens that are not padding; 0 at padding.
      state: `(last_id, last_run, last_position)` to pass to the next chunk.

    Raises:
      UsageError: only a part of the state was given.
    """
    batch, time = segment_ids.shape
    given = [x is not None for x in (last_id, last_run, last_position)]
    if any(given) and not all(given):
        raise UsageError(
            f"got {sum(given)} of the 3 arrays last_id, last_run, last_position; expected all of them, "
            "as the call before returned them, or none"
        )
    dtype = segment_ids.dtype
    if last_id is None:
        last_id = jnp.zeros((batch,), dtype)
        last_run = jnp.zeros((batch,), jnp.int32)
        last_position = jnp.full((batch,), -1, jnp.int32)
    # The state is put in front as a token of its own: then "the last token that was no padding" is one running maximum
    # over indices, and the same gather serves the first token of a chunk and the last.
    ids = jnp.concatenate([last_id[:, None].astype(dtype), segment_ids], axis=1)
    real = ids != 0
    index = jnp.arange(time + 1, dtype=jnp.int32)
    latest = lax.cummax(jnp.where(real, index, 0), axis=1)
    latest_id = jnp.take_along_axis(ids, latest, axis=1)
    starts = real[:, 1:] & (segment_ids != latest_id[:, :-1])
    run_so_far = last_run[:, None] + jnp.cumsum(starts, axis=1, dtype=last_run.dtype)
    # Within a run, positions are a count of tokens less the count at the run's start; for the run carried in, less the
    # negative count with which the state says it began.
    count = jnp.cumsum(real[:, 1:], axis=1, dtype=last_position.dtype)
    first = jnp.where(starts, count, jnp.zeros_like(count))
    first = lax.cummax(first, axis=1)
    position_so_far = jnp.where(first > 0, count - first, last_position[:, None] + count)
    run = jnp.where(real[:, 1:], run_so_far, 0)
    position = jnp.where(real[:, 1:], position_so_far, 0)
    if time == 0:
        return run, position, (last_id, last_run, last_position)
    return run, position, (latest_id[:, -1].astype(last_id.dtype), run_so_far[:, -1], position_so_far[:, -1])


def runs_and_positions_reference(segment_ids, last_id=None, last_run=None, last_position=None):
    """`runs_and_positions` as it is defined: one token after another, in Python; numpy arrays in and out."""
    segment_ids = np.asarray(segment_ids)
    batch, time = segment_ids.shape
    last_id = np.zeros(batch, int) if last_id is None else np.array(last_id)
    last_run = np.zeros(batch, int) if last_run is None else np.array(last_run)
    last_position = np.full(batch, -1) if last_position is None else np.array(last_position)
    run, position = np.zeros((batch, time), int), np.zeros((batch, time), int)
    for b in range(batch):
        for t in range(time):
            if segment_ids[b, t] == 0:
                continue
            if segment_ids[b, t] != last_id[b]:
                last_id[b] = segment_ids[b, t]
                last_run[b] += 1
                last_position[b] = -1
            last_position[b] += 1
            run[b, t], position[b, t] = last_run[b], last_position[b]
    return run, position, (last_id, last_run, last_position)
