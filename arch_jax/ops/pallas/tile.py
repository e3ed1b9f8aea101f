"""One tile of attention, for every kernel: its scores, what is hidden in it, a step of the running softmax, gradients.

Everything here works on arrays of two axes in float32, on values and not on references, so that the TPU's and the GPU's
kernels share it. A tile is (rows, columns), or with `turned` (columns, rows), as the TPU's kernel for dk and dv has it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from arch_jax.ops.pallas.schedule import BITS, Rule, squares

# Below every score, and finite: a row that has seen nothing yet subtracts it from hidden scores, and -inf less -inf
# would be NaN.
LOWEST = float(np.finfo(np.float32).min)


class Tile(NamedTuple):
    """The place of a tile, and what is hidden or added in it."""

    rule: Rule
    rows: int
    columns: int
    row: Any  #: index among the rows of tiles; may be traced
    column: Any
    bias: jax.Array | None = None  #: broadcasts to the tile
    slope: Any = None  #: ALiBi's, of the head
    query_ids: jax.Array | None = None  #: broadcasts to the tile
    key_ids: jax.Array | None = None
    words: Sequence[Any] | None = None  #: the pattern's bits, see `schedule`
    masked: bool = True  #: whether the rule hides anything
    turned: bool = False  #: (columns, rows)


def dot(a, b, a_axis: int, b_axis: int):
    """A product over one axis of each, summed in float32; float32's factors are not rounded to fewer bits."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


class Positions:
    """An integer array of positions, none below 0, so that its quotients and remainders need no look at the sign.

    Mosaic asks which TPU it is for before it takes the sign of a number, and that has no answer ahead of time.
    """

    def __init__(self, values: jax.Array):
        self.values = values

    def __floordiv__(self, n):
        return lax.div(self.values, jnp.full_like(self.values, n))

    def __mod__(self, n):
        return lax.rem(self.values, jnp.full_like(self.values, n))


def _delegated(name):
    def operation(self, other):
        return getattr(self.values, name)(other.values if isinstance(other, Positions) else other)

    return operation


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "and", "rand", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Positions, f"__{_name}__", _delegated(f"__{_name}__"))
Positions.__hash__ = None


def positions(tile: Tile):
    """The queries' and keys' positions, each of the tile's shape."""
    shape = (tile.columns, tile.rows) if tile.turned else (tile.rows, tile.columns)
    i = tile.row * tile.rows + lax.broadcasted_iota(jnp.int32, shape, int(tile.turned))
    j = tile.column * tile.columns + lax.broadcasted_iota(jnp.int32, shape, int(not tile.turned))
    return i, j


def visible(tile: Tile, i, j):
    """bool of the tile's shape: what the rule and the segments let be seen; None for everything."""
    rule, found = tile.rule, []
    if tile.masked:
        if rule.source % tile.columns:
            found.append(j < rule.source)
        if rule.causal:
            found.append(j <= i)
        if rule.window is not None:
            found.append(i - rule.window < j)
            if not rule.causal:
                found.append(j < i + rule.window)
        if tile.words is not None:
            found.append(_by_bits(tile, i, j))
        elif rule.pattern is not None and rule.pattern.granularity == 1:
            found.append(rule.pattern.visible(Positions(i), Positions(j)))
    if tile.query_ids is not None:
        ids = jnp.broadcast_to(tile.query_ids, i.shape)
        found += [ids == tile.key_ids, ids != 0]
    if not found:
        return None
    together = found[0]
    for one in found[1:]:
        together = together & one
    return together


def _by_bits(tile, i, j):
    """Looks the pattern up in the tile's bits: one for each of its squares."""
    g = jnp.int32(tile.rule.pattern.granularity)
    across = squares(tile.rule, tile.rows, tile.columns)[1]
    down = lax.div(i, g) - lax.div(jnp.int32(tile.row * tile.rows), g)
    cell = down * across + lax.div(j, g) - lax.div(jnp.int32(tile.column * tile.columns), g)
    word = jnp.broadcast_to(tile.words[0], cell.shape)
    for n, other in enumerate(tile.words[1:], start=1):
        word = jnp.where(cell >= n * BITS, other, word)
    return (lax.shift_right_logical(word, cell & (BITS - 1)) & 1) == 1


def scores(tile: Tile, q, k):
    """The scores with everything added, -inf where hidden; and the derivative of the cap (None without one)."""
    s = (dot(k, q, 1, 1) if tile.turned else dot(q, k, 1, 1)) * tile.rule.scale
    slope_of_cap = None
    if tile.rule.softcap is not None:
        bent = jnp.tanh(s / tile.rule.softcap)
        s, slope_of_cap = tile.rule.softcap * bent, 1 - bent * bent
    i, j = positions(tile)
    if tile.bias is not None:
        s = s + tile.bias.astype(jnp.float32)
    if tile.slope is not None:
        s = s - tile.slope * jnp.abs(i - j).astype(jnp.float32)
    seen = visible(tile, i, j)
    return (s if seen is None else jnp.where(seen, s, -jnp.inf)), slope_of_cap


def beginning(rows: int, vdim: int):
    """(largest score, sum of weights, weighted sum of values) of rows that have seen nothing."""
    column = lambda value: jnp.full((rows, 1), value, jnp.float32)
    return column(LOWEST), column(0.0), jnp.zeros((rows, vdim), jnp.float32)


def softmax_step(carried, s, v):
    """The running softmax (arXiv 2205.14135, algorithm 1) over one more tile."""
    largest, total, gathered = carried
    now = jnp.maximum(largest, jnp.max(s, axis=1, keepdims=True))
    weights, faded = jnp.exp(s - now), jnp.exp(largest - now)
    total = total * faded + jnp.sum(weights, axis=1, keepdims=True)
    return now, total, gathered * faded + dot(weights.astype(v.dtype), v, 1, 0)


def ending(carried):
    """The attended values, the largest score and the sum's logarithm (rows, 1): 0 and -inf for rows that saw nothing.

    The logsumexp is the sum of the last two. They are kept apart, since next to scores of 1e4 and more the logarithm,
    which is what makes the probabilities' sum 1, is lost in rounding.
    """
    largest, total, gathered = carried
    safe = jnp.where(total == 0.0, 1.0, total)
    return gathered / safe, largest, jnp.where(total == 0.0, -jnp.inf, jnp.log(safe))


def gradients(tile: Tile, q, k, v, g, largest, logarithm, delta):
    """The probabilities and their scores' gradients, of one tile: (p, before the cap, after it).

    Args:
      g: the output's gradient, (rows, vdim).
      largest, logarithm: see `ending`; broadcast to the tile. `largest` is +inf for rows that see nothing, so that
        their probabilities are 0.
      delta: sum over vdim of g times the output, less the logsumexp's gradient; broadcasts to the tile.
    """
    s, slope_of_cap = scores(tile, q, k)
    p = jnp.exp((s - largest) - logarithm)
    dp = dot(v, g, 1, 1) if tile.turned else dot(g, v, 1, 1)
    added = p * (dp - delta)
    return p, (added if slope_of_cap is None else added * slope_of_cap), added


def rounded_up(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return math.ceil(n / multiple) * multiple
