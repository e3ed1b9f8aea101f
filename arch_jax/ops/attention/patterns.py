"""Sparse attention patterns: rules that say which pairs attend, without materialising time x source.

A pattern is not causal by itself: the caller's `causal` removes the future. It is a frozen dataclass, so that
it can be a static argument of a compiled function.
"""

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import numpy as np

from arch_jax.errors import UsageError, unknown
from arch_jax.ranges import Count

__all__ = ["BigBird", "Fixed", "Longformer", "Pattern", "SlidingWindow", "Strided"]


@runtime_checkable
class Pattern(Protocol):
    """Protocol of a sparse pattern.

    Attributes:
      granularity: visibility is constant on aligned squares of this size; 1 where it is decided pair by pair.
    """

    @property
    def granularity(self) -> int:
        """Side of the aligned squares on which visibility is constant."""

    def visible(self, i: Any, j: Any) -> Any:
        """True where query i sees key j: bool, from integer arrays that broadcast (numpy or jax); by arithmetic only.

        Raises:
          UsageError: the granularity is above 1 and pairs can't be decided without the length: ask `tiles`.
        """

    def tiles(self, time: int, source: int, rows: int, columns: int) -> np.ndarray:
        """bool "ceil(time / rows) ceil(source / columns)": the tiles that hold any visible pair."""

    def mask(self, time: int, source: int) -> np.ndarray:
        """bool "time source": every pair; for the oracle and for figures."""


def _edges(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last position of each of the tiles of `size` that cover `length`."""
    first = np.arange(0, length, size)
    return first, np.minimum(first + size, length) - 1


def _tiles(time, source, rows, columns):
    """First and last rows as columns "tiles 1", first and last columns as rows "1 tiles"."""
    (i0, i1), (j0, j1) = _edges(time, rows), _edges(source, columns)
    return i0[:, None], i1[:, None], j0[None], j1[None]


def _distance(i0, i1, j0, j1):
    """The least |i - j| between two ranges: 0 where they overlap."""
    return np.maximum(0, np.maximum(i0 - j1, j0 - i1))


def _positive(pattern: Any, *names: str) -> None:
    for name in names:
        value = getattr(pattern, name)
        if value < 1:
            raise UsageError(
                f"{name} of the pattern {type(pattern).__name__} is {value}; expected an integer of at least 1"
            )


class _PairByPair:
    """Base of the patterns that are decided pair by pair, by arithmetic."""

    granularity = 1

    def mask(self, time: int, source: int) -> np.ndarray:
        """bool "time source": every pair."""
        return np.broadcast_to(self.visible(np.arange(time)[:, None], np.arange(source)[None]), (time, source))


@dataclasses.dataclass(frozen=True)
class SlidingWindow(_PairByPair):
    """Query i sees the keys with |i - j| < window, as `attention(window=...)`.

    Attributes:
      window: at least 1; 1 sees only the token itself.
    """

    window: int = 256

    def __post_init__(self) -> None:
        _positive(self, "window")

    def visible(self, i: Any, j: Any) -> Any:
        """|i - j| < window."""
        return (i - j < self.window) & (j - i < self.window)

    def tiles(self, time: int, source: int, rows: int, columns: int) -> np.ndarray:
        """The tiles with any visible pair."""
        return _distance(*_tiles(time, source, rows, columns)) < self.window


@dataclasses.dataclass(frozen=True)
class Strided(_PairByPair):
    """The strided pattern of the Sparse Transformer (Child et al. 2019, 1904.10509, section 4.2).

    "local" sees |i - j| < stride, "summary" sees the keys a multiple of `stride` away, and "merged" both. Two hops, one
    of each part, join any two positions. (The paper's local part reaches one position further than its published code,
    which this is.)

    Attributes:
      stride: the paper's l, about the square root of the length.
      part: "merged" for one head that does both, or one of the two parts, for layers or heads that alternate.
    """

    stride: int = 128
    part: str = "merged"

    def __post_init__(self) -> None:
        _positive(self, "stride")
        _part(self)

    def visible(self, i: Any, j: Any) -> Any:
        """|i - j| < stride, or i - j is a multiple of it."""
        local = (i - j < self.stride) & (j - i < self.stride)
        if self.part == "local":
            return local
        summary = (i - j) % self.stride == 0
        return summary if self.part == "summary" else local | summary

    def tiles(self, time: int, source: int, rows: int, columns: int) -> np.ndarray:
        """The tiles with any visible pair."""
        edges = i0, i1, j0, j1 = _tiles(time, source, rows, columns)
        local = _distance(*edges) < self.stride
        if self.part == "local":
            return local
        # The differences in a tile are all of i0 - j1 ... i1 - j0; is the last multiple up to their end among them?
        summary = (i1 - j0) // self.stride * self.stride >= i0 - j1
        return summary if self.part == "summary" else local | summary


@dataclasses.dataclass(frozen=True)
class Fixed(_PairByPair):
    """The fixed pattern of the Sparse Transformer (Child et al. 2019, 1904.10509, section 4.2).

    The sequence is cut into blocks of `stride`: "local" sees the own block, "summary" the last `summary` positions of
    every block (which summarise the block), and "merged" both.

    Attributes:
      stride: the paper's l, the length of a block.
      summary: the paper's c, at most `stride`.
      part: "merged" for one head that does both, or one of the two parts, for layers or heads that alternate.
    """

    stride: int = 128
    summary: int = 8
    part: str = "merged"

    def __post_init__(self) -> None:
        _positive(self, "stride", "summary")
        _part(self)
        if self.summary > self.stride:
            raise UsageError(
                f"summary of the pattern Fixed is {self.summary}; expected at most its stride, {self.stride}"
            )

    def visible(self, i: Any, j: Any) -> Any:
        """j is in i's block, or among the last `summary` positions of its own."""
        local = i // self.stride == j // self.stride
        if self.part == "local":
            return local
        summary = (j % self.stride >= self.stride - self.summary) & (i == i)
        return summary if self.part == "summary" else local | summary

    def tiles(self, time: int, source: int, rows: int, columns: int) -> np.ndarray:
        """The tiles with any visible pair."""
        i0, i1, j0, j1 = _tiles(time, source, rows, columns)
        local = (i0 // self.stride <= j1 // self.stride) & (j0 // self.stride <= i1 // self.stride)
        if self.part == "local":
            return local
        summary = np.broadcast_to(self._before(j1 + 1) > self._before(j0), local.shape)
        return summary if self.part == "summary" else local | summary

    def _before(self, j):
        """The number of summary positions before j."""
        return j // self.stride * self.summary + np.maximum(0, j % self.stride - (self.stride - self.summary))


def _part(pattern: Any) -> None:
    if pattern.part not in ("merged", "local", "summary"):
        raise unknown(f"part of the pattern {type(pattern).__name__}", pattern.part, ("merged", "local", "summary"))


@dataclasses.dataclass(frozen=True)
class Longformer(_PairByPair):
    """A window for all, and a few tokens that see everything and are seen by all (Beltagy et al. 2020, 2004.05150).

    Section 3.1. The global tokens are the first ones ([CLS], a question), and use the same projections as the others.

    Attributes:
      window: the paper's w, even: a token sees w / 2 on each side, and itself.
      global_tokens: the number of global tokens at the start.
    """

    window: int = 512
    global_tokens: Count = 1

    def __post_init__(self) -> None:
        if self.window < 2 or self.window % 2:
            raise UsageError(
                f"window of the pattern Longformer is {self.window}; expected an even number of at least 2, half of it "
                f"for each side (the nearest is {max(2, self.window + self.window % 2)})"
            )
        if self.global_tokens < 0:
            raise UsageError(
                f"global_tokens of the pattern Longformer is {self.global_tokens}; expected an integer of at least 0"
            )

    def visible(self, i: Any, j: Any) -> Any:
        """|i - j| <= window / 2, or one of the two is global."""
        half = self.window // 2
        return ((i - j <= half) & (j - i <= half)) | (i < self.global_tokens) | (j < self.global_tokens)

    def tiles(self, time: int, source: int, rows: int, columns: int) -> np.ndarray:
        """The tiles with any visible pair."""
        edges = i0, _, j0, _ = _tiles(time, source, rows, columns)
        return (_distance(*edges) <= self.window // 2) | (i0 < self.global_tokens) | (j0 < self.global_tokens)


@dataclasses.dataclass(frozen=True)
class BigBird:
    """Window, global and random blocks (Zaheer et al. 2020, 2007.14062, section 2 and appendix D, the form ITC).

    The sequence is cut into blocks; a block of queries sees the blocks within the window around it, the global blocks,
    and some chosen at random among all others. Global blocks see everything. With `global_blocks=2` these are the first
    block and the last, as in the paper's experiments.

    Attributes:
      block: positions in a block.
      window_blocks: odd: the own block and as many on each side as make it up.
      global_blocks: global blocks, taken in turn from the start and the end.
      random_blocks: random blocks for each block of queries; fewer if there are no more.
      seed: of the draw.
    """

    block: int = 64
    window_blocks: int = 3
    global_blocks: Count = 2
    random_blocks: Count = 3
    seed: Count = 0

    def __post_init__(self) -> None:
        _positive(self, "block", "window_blocks")
        if self.window_blocks % 2 == 0:
            raise UsageError(
                f"window_blocks of the pattern BigBird is {self.window_blocks}; expected an odd number, as many blocks "
                f"on each side of the own (the nearest is {self.window_blocks + 1})"
            )
        for name in ("global_blocks", "random_blocks"):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"{name} of the pattern BigBird is {getattr(self, name)}; expected an integer of at least 0"
                )

    @property
    def granularity(self) -> int:
        """The size of a block."""
        return self.block

    def visible(self, i: Any, j: Any) -> Any:
        """Undecidable from i and j alone, since the last block and the random blocks depend on the length.

        Raises:
          UsageError: always.
        """
        raise UsageError("BigBird's pairs depend on the length; expected a call of its tiles or its mask")

    def blocks(self, time: int, source: int) -> np.ndarray:
        """bool "ceil(time / block) ceil(source / block)": which blocks of keys each block of queries sees."""
        return _bigbird_blocks(self, -(-time // self.block), -(-source // self.block)).copy()

    def tiles(self, time: int, source: int, rows: int, columns: int) -> np.ndarray:
        """The tiles with any visible pair."""
        kept = _bigbird_blocks(self, -(-time // self.block), -(-source // self.block))
        # How many blocks are kept in each rectangle from the origin: a tile's number is four of these.
        counts = np.pad(np.cumsum(np.cumsum(kept, axis=0), axis=1), ((1, 0), (1, 0)))
        i0, i1, j0, j1 = (edge // self.block for edge in _tiles(time, source, rows, columns))
        return counts[i1 + 1, j1 + 1] - counts[i0, j1 + 1] - counts[i1 + 1, j0] + counts[i0, j0] > 0

    def mask(self, time: int, source: int) -> np.ndarray:
        """bool "time source": every pair."""
        kept = self.blocks(time, source)
        return kept[np.arange(time)[:, None] // self.block, np.arange(source)[None] // self.block]


@functools.lru_cache(maxsize=64)
def _bigbird_blocks(pattern: BigBird, rows: int, columns: int) -> np.ndarray:
    front, back = -(-pattern.global_blocks // 2), pattern.global_blocks // 2
    i, j = np.arange(rows)[:, None], np.arange(columns)[None]
    kept = np.abs(i - j) <= pattern.window_blocks // 2
    kept = kept | (j < front) | (j >= columns - back) | (i < front) | (i >= rows - back)
    # A generator for each row: a row's random blocks do not depend on the rows before it.
    for row in range(rows):
        free = np.flatnonzero(~kept[row])
        draw = np.random.default_rng((pattern.seed, row))
        kept[row, draw.permutation(free)[: pattern.random_blocks]] = True
    kept.setflags(write=False)
    return kept
