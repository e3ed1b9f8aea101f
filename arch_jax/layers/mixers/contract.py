"""The contract of sequence mixers, shared by attention, recurrences and long convolutions.

    y, state = mixer(x, segment_ids=None, state=None, train=False)   # x, y: "batch time width"; None in -> None out
    state = mixer.initial_state(batch, length, width, dtype)         # any pytree

Segment id 0 is padding: its output is 0 and it leaves the state untouched. A change of id resets. The state has a field
`at`, a `SequencePosition`: each row's last segment id and position, so that a sequence may be fed in any chunks.

A mixer (or feed-forward) may have a field `residual_scale`: a factor on the initial weights of its output, which a
decoder sets when it scales them with its depth. A mixer that depends on the layer (most do in their initial parameters
alone) has an attribute `placed` that is true and takes one argument more, `place`: (number of the layer, how many there
are). In a pattern of several mixers that is the number of the turn.
"""

from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from arch_jax.errors import UsageError
from arch_jax.fields import Kind, settings
from arch_jax.layers.sequence_position import SequencePosition, advanced
from arch_jax.ops.segments import runs_and_positions

#: Place of a layer: (its number from 0, the number of layers). The number is traced where layers are scanned.
Place = tuple[Any, int]

Mixer = Annotated[nn.Module, Kind("mixer")]
FeedForward = Annotated[nn.Module, Kind("feed_forward")]
Cross = Annotated[nn.Module, Kind("cross")]
Norm = Annotated[nn.Module, Kind("norm")]
Position = Annotated[nn.Module, Kind("position")]


def unbound(value: Any) -> Any:
    """A copy of a module (or tuple of modules) that belongs to no parent, down to its last part.

    Linen binds a module field to its owner when it is first touched, and the parts of that field with it; a plain
    `clone` keeps those inner bindings, and their parameters would land beside the owner instead of inside the clone.
    """
    if isinstance(value, tuple):
        return tuple(map(unbound, value))
    if not isinstance(value, nn.Module):
        return value
    parts = {field.name: unbound(vars(value)[field.name]) for field in settings(value)}
    return type(value)(**parts, parent=None, name=None)


def check_sizes(module: nn.Module, sizes: tuple[str, ...] = ("vocabulary", "depth", "width")) -> None:
    """Refuses a model whose sizes or dropout rate are out of range.

    Raises:
      UsageError: one of `sizes` is below 1, or `dropout` not in [0, 1).
    """
    for name in sizes:
        if getattr(module, name) < 1:
            raise UsageError(f"{name} is {getattr(module, name)}; expected at least 1")
    if not 0 <= module.dropout < 1:
        raise UsageError(f"dropout is {module.dropout}; expected at least 0 and less than 1")


def check_state(state: Any, kind: type, batch: int, mixer: str) -> None:
    """Refuses a state that is not a mixer's own, or of another batch.

    Args:
      state: has `at`, a `SequencePosition`; None passes.
      kind: the class of the mixer's states.
      batch: rows of the sequence.
      mixer: its name.

    Raises:
      UsageError: see above.
    """
    if state is None:
        return
    if type(state) is not kind:
        raise UsageError(f"{mixer} was given a {type(state).__name__} as its state; expected a {kind.__name__}")
    if state.at.last_id.shape[:1] != (batch,):
        raise UsageError(
            f"the state of {mixer} has {state.at.last_id.shape[0]} rows; expected {batch}, as many as the sequence has"
        )


def runs(x: Array, segment_ids: Array | None, state: Any) -> tuple[Array | None, Array | None, SequencePosition | None]:
    """Run and position of each token, as `ops.segments.runs_and_positions` counts them.

    Args:
      x: the sequence, "batch time width".
      segment_ids: "batch time", or None for one segment.
      state: None, or one with `at`, a `SequencePosition`.

    Returns:
      (each token's run, its position in it, the next state's `SequencePosition`); None for what is not needed: the
      first two without segments and state, the last without state.
    """
    if state is not None:
        ids = jnp.ones(x.shape[:2], jnp.int32) if segment_ids is None else segment_ids
        return advanced(state.at, ids)
    if segment_ids is None:
        return None, None, None
    run, position, _ = runs_and_positions(segment_ids)
    return run, position, None


def real_only(y: Array, run: Array | None) -> Array:
    """y "batch time width", with 0 at padding."""
    return y if run is None else jnp.where(run[:, :, None] > 0, y, jnp.zeros((), y.dtype))


def adapted(module: nn.Module, **values: Any) -> nn.Module:
    """An unbound copy with those of `values` set that the module has a field for.

    A parent hands its dtypes down to its parts this way.
    """
    names = {field.name for field in settings(module)}
    return unbound(module).clone(parent=None, **{name: value for name, value in values.items() if name in names})
