"""The cache of a decoding attention layer: entries of earlier tokens, in slots that rows fill at their own pace.

A row's tokens take slots 0, 1, 2, ... in order; padding takes none, which is how prompts of different lengths are fed.
With a window the cache is a ring: slot s lies at place s modulo the window's size, over what no later query can see.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from arch_jax.layers.sequence_position import advanced, at_start


@flax.struct.dataclass
class Cache:
    """Entries of the tokens so far. A slot belongs to a run (1, 2, ...; 0 is empty); only equal runs see each other.

    Attributes:
      entries: arrays "batch places ...": what a layer keeps of a token, such as its key and its value.
      place_run: the run of a place's token, "batch places".
      used: the number of slots filled so far, "batch"; in a ring it goes beyond the number of places.
      at: position of each row, a `SequencePosition`.
      ring: whether places are used again.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    entries: Any
    place_run: Any
    used: Any
    at: Any
    ring: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class Seen:
    """The entries that the queries of a chunk may attend to.

    Attributes:
      entries: arrays "batch source ...".
      distance: slots between each query and each entry (0 for a token and itself), "batch time source".
      visible: whether the query may attend to it: not later, of the same run, within the window; "batch time source".
    """

    entries: tuple[Array, ...]
    distance: Int[Array, "batch time source"]
    visible: Bool[Array, "batch time source"]


def empty(batch: int, length: int, shapes: tuple[tuple[int, ...], ...], dtype: Any, window: int | None = None) -> Cache:
    """A cache with room for `length` tokens a row, of which entries of `shapes` are kept; no more than the window's."""
    ring = window is not None and window < length
    places = window if ring else length
    zeros = jnp.zeros((batch,), jnp.int32)
    return Cache(
        entries=tuple(jnp.zeros((batch, places, *shape), dtype) for shape in shapes),
        place_run=jnp.zeros((batch, places), jnp.int32),
        used=zeros,
        at=at_start(batch),
        ring=ring,
    )


def follow(
    cache: Cache, segment_ids: Int[Array, "batch time"] | None, time: int
) -> tuple[Int[Array, "batch time"], Int[Array, "batch time"], Cache]:
    """Run and position of each token of a chunk, and the cache with them counted; nothing is stored yet."""
    ids = jnp.ones((cache.used.shape[0], time), jnp.int32) if segment_ids is None else segment_ids
    run, position, at = advanced(cache.at, ids)
    return run, position, cache.replace(at=at)


def store(
    cache: Cache, new: tuple[Array, ...], run: Int[Array, "batch time"], window: int | None = None
) -> tuple[Cache, Seen]:
    """Writes the real tokens of a chunk after those in the cache, and says what each of its queries may see.

    Args:
      cache: as `follow` returned it.
      new: the entries of each token, "batch time ...".
      run: of each token, as `follow` returned it; 0 is padding and leaves no trace.
      window: the number of latest tokens, itself included, that a token sees; None is all.
    """
    valid = run > 0
    count = jnp.cumsum(valid, axis=1)
    slot, places = cache.used[:, None] + count - 1, cache.place_run.shape[1]
    used = cache.used + count[:, -1].astype(cache.used.dtype)
    target, stays = slot, valid
    if cache.ring:
        target = slot % places
        stays = valid & (slot >= used[:, None] - places)  # the others would be written over by this very chunk
    # Outside the cache: dropped.
    target = jnp.where(stays, target, places)
    row = jnp.arange(run.shape[0])[:, None]
    write = lambda old, values: old.at[row, target].set(values.astype(old.dtype), mode="drop")
    entries = tuple(write(old, x) for old, x in zip(cache.entries, new))
    after = cache.replace(entries=entries, place_run=write(cache.place_run, run), used=used)
    if cache.ring and run.shape[1] > 1:
        # A chunk's first queries still need what its last tokens are written over: they read the ring as it was.
        behind = _slots(cache)
        entries = tuple(jnp.concatenate([old, x.astype(old.dtype)], axis=1) for old, x in zip(cache.entries, new))
        source_slot = jnp.concatenate([behind, slot], axis=1)
        source_run = jnp.concatenate([cache.place_run, run], axis=1)
    else:
        source_slot, source_run = _slots(after), after.place_run
    distance = slot[:, :, None] - source_slot[:, None, :]
    visible = (distance >= 0) & (source_run[:, None, :] == run[:, :, None]) & valid[:, :, None]
    if window is not None:
        visible &= distance < window
    return after, Seen(entries, distance, visible)


def _slots(cache: Cache) -> Int[Array, "batch places"]:
    """Which slot each place holds; in a ring the latest of those that fall on it (below 0 where none did)."""
    places = cache.place_run.shape[1]
    place = jnp.broadcast_to(jnp.arange(places), cache.place_run.shape)
    if not cache.ring:
        return place
    last = cache.used[:, None] - 1
    return last - (last - place) % places
