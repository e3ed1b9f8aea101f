"""The tiles of the score matrix that a kernel visits, computed ahead of time from the static part of the mask.

`causal`, `window` and a sparse pattern are the same for every batch row and head. Tiles in which they hide everything
are in no list, so that the time goes with the tiles kept; tiles in which they hide nothing need no mask.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from arch_jax.ops.attention.patterns import Pattern

__all__ = ["EMPTY", "FULL", "PARTIAL", "Rule", "Schedule", "schedule"]

#: What a visit finds: nothing (its row has no tile, but must be written), something hidden, nothing hidden.
EMPTY, PARTIAL, FULL = 0, 1, 2
BITS = 32


@dataclasses.dataclass(frozen=True)
class Rule:
    """The static part of an attention."""

    time: int
    source: int
    scale: float
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    pattern: Pattern | None = None


class Schedule(NamedTuple):
    """The visits of a kernel, ordered by row of tiles (or by column), in each the tiles with nothing hidden first."""

    row: np.ndarray  #: int32 "visits"
    column: np.ndarray  #: int32 "visits"
    kind: np.ndarray  #: int32 "visits": EMPTY, PARTIAL or FULL
    start: np.ndarray  #: int32 "lines + 1": the visits of line n are start[n] ... start[n + 1] - 1
    middle: np.ndarray  #: int32 "lines": the line's first visit that is not FULL
    words: np.ndarray | None  #: int32 "visits words": a bit for each square of the pattern in the tile
    tiles: np.ndarray  #: bool "rows columns": the tiles that are visited and have something to see

    @property
    def kinds(self) -> set[int]:
        """The kinds that occur."""
        return set(self.kind.tolist())


def squares(rule: Rule, rows: int, columns: int) -> tuple[int, int] | None:
    """Of how many of the pattern's squares a tile can have a part, down and across; None if a tile needs no bits.

    It needs none without a pattern, with one that is computed for each pair, and where each tile lies in one square.
    """
    g = 1 if rule.pattern is None else rule.pattern.granularity
    if g == 1 or (g % rows == 0 and g % columns == 0):
        return None
    return tuple(n // g if n % g == 0 else 1 if g % n == 0 else (n - 2) // g + 2 for n in (rows, columns))


@functools.lru_cache(maxsize=256)
def schedule(rule: Rule, rows: int, columns: int, by_column: bool = False) -> Schedule:
    """The tiles of `rows` queries by `columns` keys that have a visible pair, as far as the rule settles it.

    Args:
      by_column: order the visits by column of tiles; rows otherwise. A line without any tile gets one EMPTY visit.
    """
    first_i, first_j = (np.arange(0, n, size) for n, size in ((rule.time, rows), (rule.source, columns)))
    last_i = np.minimum(first_i + rows, rule.time)[:, None] - 1
    last_j = np.minimum(first_j + columns, rule.source)[None, :] - 1
    i, j = first_i[:, None], first_j[None, :]
    seen = np.ones((len(first_i), len(first_j)), bool)
    full = seen & (j + columns <= rule.source)
    if rule.causal:
        seen, full = seen & (j <= last_i), full & (last_j <= i)
    if rule.window is not None:
        seen, full = seen & (i - rule.window < last_j), full & (last_i - rule.window < j)
        if not rule.causal:
            seen, full = seen & (j < last_i + rule.window), full & (last_j < i + rule.window)
    if rule.pattern is not None:
        seen = seen & np.asarray(rule.pattern.tiles(rule.time, rule.source, rows, columns), bool)
        if rule.pattern.granularity == 1:
            full = np.zeros_like(full)
    words, whole = _words(rule, rows, columns, seen.shape)
    kind = np.where(seen, np.where(full & whole, FULL, PARTIAL), EMPTY)

    listed = seen.T if by_column else seen
    listed = listed.copy()
    listed[~listed.any(axis=1), 0] = True
    line, other = np.nonzero(listed)
    row, column = (other, line) if by_column else (line, other)
    order = np.lexsort((other, -kind[row, column], line))
    row, column, line = row[order], column[order], line[order]
    start = np.searchsorted(line, np.arange(len(listed) + 1))
    covered = np.bincount(line, weights=kind[row, column] == FULL, minlength=len(listed)).astype(int)
    as_int = lambda x: x.astype(np.int32)
    return Schedule(
        row=as_int(row),
        column=as_int(column),
        kind=as_int(kind[row, column]),
        start=as_int(start),
        middle=as_int(start[:-1] + covered),
        words=None if words is None else words[row, column],
        tiles=seen,
    )


def _words(rule, rows, columns, shape):
    """The bits of each tile's squares, int32 "rows columns words" or None, and which tiles see all of theirs."""
    sides = squares(rule, rows, columns)
    if sides is None:
        return None, np.ones(shape, bool)
    g = rule.pattern.granularity
    index, inside, beyond = [], [], []
    for n, size, side, length in zip(shape, (rows, columns), sides, (rule.time, rule.source)):
        first = np.arange(n) * size
        square = (first // g)[:, None] + np.arange(side)
        index.append(np.minimum(square, (length - 1) // g))
        inside.append(square <= (length - 1) // g)
        beyond.append(square > ((np.minimum(first + size, length) - 1) // g)[:, None])
    i, j = index[0][:, None, :, None], index[1][None, :, None, :]
    visible = np.asarray(rule.pattern.tiles(rule.time, rule.source, g, g), bool)[i, j]
    outside = beyond[0][:, None, :, None] | beyond[1][None, :, None, :]
    whole = np.all(visible | outside, axis=(2, 3))
    bits = (visible & inside[0][:, None, :, None] & inside[1][None, :, None, :]).reshape(*shape, -1)
    bits = np.pad(bits, [(0, 0), (0, 0), (0, -bits.shape[-1] % BITS)]).reshape(*shape, -1, BITS)
    words = np.sum(bits.astype(np.uint32) << np.arange(BITS, dtype=np.uint32), axis=-1, dtype=np.uint32)
    return words.view(np.int32), whole
