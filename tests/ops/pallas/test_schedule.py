"""Which tiles the kernels visit, against every pair of positions looked at one by one; and the tiles' sizes."""

import dataclasses

import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.attention.patterns import BigBird, Fixed, Longformer, Strided
from arch_jax.ops.pallas.blocks import Blocks, choose_blocks
from arch_jax.ops.pallas.schedule import EMPTY, FULL, PARTIAL, Rule, schedule, squares


@dataclasses.dataclass(frozen=True)
class Band:
    """Squares next to the diagonal's, but for one row of squares that sees nothing."""

    granularity: int
    blind: int = 1

    def tiles(self, time, source, rows, columns):
        mask = self.mask(time, source)
        padded = np.pad(mask, [(0, -time % rows), (0, -source % columns)])
        return padded.reshape(-(-time // rows), rows, -(-source // columns), columns).any(axis=(1, 3))

    def visible(self, i, j):
        i, j = i // self.granularity, j // self.granularity
        return (abs(i - j) <= 1) & (i != self.blind)

    def mask(self, time, source):
        return self.visible(np.arange(time)[:, None], np.arange(source))


def pairs(rule: Rule) -> np.ndarray:
    """bool "time source": what the rule lets be seen."""
    i, j = np.arange(rule.time)[:, None], np.arange(rule.source)
    mask = np.ones((rule.time, rule.source), bool)
    if rule.causal:
        mask &= j <= i
    if rule.window is not None:
        mask &= (i - rule.window < j) & (j < i + rule.window)
    if rule.pattern is not None:
        mask &= rule.pattern.mask(rule.time, rule.source)
    return mask


def in_tiles(mask: np.ndarray, rows: int, columns: int, value: bool) -> np.ndarray:
    """bool "down across rows columns", with `value` beyond the ends."""
    (time, source), ends = mask.shape, [(0, -mask.shape[0] % rows), (0, -mask.shape[1] % columns)]
    padded = np.pad(mask, ends, constant_values=value)
    return padded.reshape(-(-time // rows), rows, -(-source // columns), columns).swapaxes(1, 2)


RULES = [
    Rule(37, 21, 1.0),
    Rule(32, 48, 1.0),
    Rule(61, 61, 1.0, causal=True),
    Rule(61, 61, 1.0, causal=True, window=1),
    Rule(61, 61, 1.0, causal=True, window=17),
    Rule(64, 64, 1.0, window=20),
    Rule(64, 64, 1.0, causal=True, pattern=Strided(stride=12)),
    Rule(70, 70, 1.0, causal=True, pattern=Fixed(stride=9, summary=2)),
    Rule(50, 50, 1.0, window=40, pattern=Longformer(window=6, global_tokens=3)),
]
SQUARES = [
    Rule(64, 64, 1.0, pattern=Band(8)),
    Rule(61, 61, 1.0, causal=True, pattern=Band(16)),
    Rule(61, 61, 1.0, pattern=Band(5)),
    Rule(96, 96, 1.0, pattern=Band(2, blind=3)),
    Rule(128, 128, 1.0, causal=True, pattern=BigBird(block=16, random_blocks=1)),
]


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (8, 32), (32, 8)])
@pytest.mark.parametrize("rule", RULES + SQUARES, ids=repr)
def test_the_tiles_visited_are_those_with_something_to_see(rule, rows, columns, by_column):
    plan = schedule(rule, rows, columns, by_column=by_column)
    mask = pairs(rule)
    seen = in_tiles(mask, rows, columns, False).any(axis=(2, 3))
    visited = plan.kind > EMPTY
    # causal with a pattern: a tile that each of the two keeps may be hidden by both together, and is masked.
    kept = np.zeros_like(seen)
    kept[plan.row[visited], plan.column[visited]] = True
    assert np.all(kept[seen])
    if rule.pattern is None:
        np.testing.assert_array_equal(kept, seen)
    np.testing.assert_array_equal(plan.tiles, kept)
    # No tile twice, except that a line with nothing to see has one visit, to be written.
    line, count = (plan.column, seen.shape[1]) if by_column else (plan.row, seen.shape[0])
    assert len({*zip(plan.row, plan.column)}) == len(plan.row)
    assert np.all(np.diff(line) >= 0)
    assert set(line.tolist()) == set(range(count))
    np.testing.assert_array_equal(np.bincount(line, minlength=count), np.diff(plan.start))

    # FULL is never claimed of a tile with anything hidden; rows beyond the end are nobody's.
    inside = np.pad(mask, [(0, -rule.time % rows), (0, 0)], constant_values=True)
    whole = in_tiles(inside, rows, columns, False).all(axis=(2, 3))
    assert np.all(whole[plan.row[plan.kind == FULL], plan.column[plan.kind == FULL]])
    if rule.pattern is None:
        assert np.all(plan.kind[whole[plan.row, plan.column] & visited] == FULL)
    for n, middle in enumerate(plan.middle):
        assert np.all(plan.kind[plan.start[n] : middle] == FULL)
        assert np.all(plan.kind[middle : plan.start[n + 1]] != FULL)


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (8, 32), (24, 16)])
@pytest.mark.parametrize("rule", SQUARES, ids=repr)
def test_a_tiles_bits_are_the_patterns_squares(rule, rows, columns):
    plan, g = schedule(rule, rows, columns), rule.pattern.granularity
    sides = squares(rule, rows, columns)
    mask = rule.pattern.mask(rule.time, rule.source)
    if sides is None:
        assert g % rows == 0
        assert g % columns == 0
        return
    for n in range(len(plan.row)):
        for i in range(plan.row[n] * rows, min(rule.time, (plan.row[n] + 1) * rows), 3):
            for j in range(plan.column[n] * columns, min(rule.source, (plan.column[n] + 1) * columns), 5):
                down, across = i // g - plan.row[n] * rows // g, j // g - plan.column[n] * columns // g
                assert down < sides[0]
                assert across < sides[1]
                cell = down * sides[1] + across
                word = int(plan.words.view(np.uint32)[n, cell // 32])
                assert bool(word >> int(cell) % 32 & 1) == mask[i, j]


def test_time_goes_with_the_tiles_kept():
    """A window's visits grow with the length, and not with its square."""
    visits = [len(schedule(Rule(n, n, 1.0, causal=True, window=128), 128, 128).row) for n in (1024, 4096)]
    assert visits == [2 * 8 - 1, 2 * 32 - 1]
    assert len(schedule(Rule(4096, 4096, 1.0, causal=True), 128, 128).row) == 32 * 33 // 2
    big = Rule(4096, 4096, 1.0, pattern=BigBird(block=128))
    assert len(schedule(big, 128, 128).row) < 400
    assert schedule(big, 128, 128).kinds == {FULL}
    assert PARTIAL in schedule(dataclasses.replace(big, causal=True), 128, 128).kinds


@pytest.mark.parametrize(("platform", "least"), [("tpu", 128), ("gpu", 16)])
@pytest.mark.parametrize("time", [1, 100, 640, 1000, 8192])
@pytest.mark.parametrize("dim", [20, 64, 256])
def test_sizes_from_the_table_suit_the_platform(platform, least, time, dim):
    for itemsize in (2, 4):
        for more in ({}, {"window": 200}, {"granularity": 1}, {"granularity": 64}, {"window": 3, "granularity": 512}):
            blocks = choose_blocks(platform, dim, itemsize, time, time, **more)
            blocks.check(platform, interpreted=False)
            for size in (*blocks.forward, *blocks.backward):
                needed = -(-time // least) * least
                assert -(-time // size) * size <= max(least, 1.125 * needed)


def test_longer_and_sparser_take_other_sizes():
    assert choose_blocks("tpu", 64, 2, 8192, 8192).forward == (512, 512)
    assert choose_blocks("tpu", 64, 2, 64, 8192).forward == (128, 512)
    for dim in (64, 128, 256):  # what is compiled at the greater length stands for the smaller
        for itemsize in (2, 4):
            assert choose_blocks("tpu", dim, itemsize, 1024, 1024) == choose_blocks("tpu", dim, itemsize, 8192, 8192)
    assert choose_blocks("tpu", 64, 2, 8192, 8192, window=100).forward == (128, 128)
    assert choose_blocks("tpu", 64, 2, 8192, 8192, granularity=256).forward == (256, 256)
    assert choose_blocks("tpu", 64, 2, 8192, 8192, granularity=64).forward == (128, 128)
    assert choose_blocks("gpu", 64, 2, 8192, 8192, granularity=64).forward == (64, 64)


def test_sizes_that_a_platform_cannot_take_are_refused():
    with pytest.raises(UsageError, match=r"blocks.rows is 100; expected a multiple of 128 .* \(the nearest is 128\)"):
        Blocks(100, 128).check("tpu", interpreted=False)
    with pytest.raises(UsageError, match=r"blocks.columns is 48; expected a power of two .* \(the nearest is 64\)"):
        Blocks(64, 64, 32, 48).check("gpu", interpreted=False)
    with pytest.raises(UsageError, match=r"blocks\.rows is 0; expected an integer of at least 1"):
        Blocks(0, 16).check("gpu", interpreted=True)
    Blocks(100, 48).check("gpu", interpreted=True)
    with pytest.raises(UsageError, match=r"the head size is 320; expected at most 256"):
        choose_blocks("tpu", 320, 2, 128, 128)
