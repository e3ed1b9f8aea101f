"""Sparse patterns: tiles against the mask they stand for, and what each paper says its pattern does."""

import numpy as np
import pytest

from arch_jax import fields
from arch_jax.errors import UsageError
from arch_jax.layers.transformer import patterns as named
from arch_jax.ops.attention.patterns import BigBird, Fixed, Longformer, Pattern, SlidingWindow, Strided

assert named.Pattern

PATTERNS = [
    SlidingWindow(5),
    Strided(6),
    Strided(7, part="local"),
    Strided(7, part="summary"),
    Fixed(8, 2),
    Fixed(5, 1, part="local"),
    Fixed(9, 3, part="summary"),
    Longformer(6, 3),
    Longformer(4, 0),
    BigBird(4, 3, 2, 2),
    BigBird(3, 1, 1, 1, seed=5),
    BigBird(5, 5, 0, 0),
]
every = pytest.mark.parametrize("pattern", PATTERNS, ids=repr)


@every
@pytest.mark.parametrize(("time", "rows", "columns"), [(40, 4, 4), (41, 8, 3), (37, 5, 16), (12, 12, 12), (1, 4, 4)])
def test_a_tile_is_kept_where_the_mask_has_any_pair(pattern, time, rows, columns):
    assert isinstance(pattern, Pattern)
    mask = pattern.mask(time, time)
    padded = np.zeros((-(-time // rows) * rows, -(-time // columns) * columns), bool)
    padded[:time, :time] = mask
    expected = padded.reshape(-(-time // rows), rows, -(-time // columns), columns).any(axis=(1, 3))
    np.testing.assert_array_equal(pattern.tiles(time, time, rows, columns), expected)


@every
def test_every_token_sees_itself(pattern):
    if getattr(pattern, "part", "merged") != "summary" or isinstance(pattern, Strided):
        assert pattern.mask(33, 33).diagonal().all()


@every
def test_visibility_is_constant_on_squares_of_the_granularity(pattern):
    g = pattern.granularity
    squares = pattern.mask(6 * g, 6 * g).reshape(6, g, 6, g)
    np.testing.assert_array_equal(squares, np.broadcast_to(squares[:, :1, :, :1], squares.shape))


def test_two_hops_of_the_strided_parts_reach_every_earlier_position():
    time, stride = 50, 7
    earlier = np.tril(np.ones((time, time), bool))
    local, summary = (Strided(stride, part=part).mask(time, time) & earlier for part in ("local", "summary"))
    np.testing.assert_array_equal((local.astype(int) @ summary) > 0, earlier)
    np.testing.assert_array_equal(Strided(stride).mask(time, time) & earlier, local | summary)
    # Row t: its stride latest, and then one in each stride before.
    assert (local | summary)[49].sum() == stride + 49 // stride


def test_the_fixed_pattern_sees_its_block_and_every_summary():
    mask = Fixed(4, 1).mask(12, 12)
    for i in range(12):
        expected = {j for j in range(12) if j // 4 == i // 4 or j % 4 == 3}
        assert set(np.flatnonzero(mask[i])) == expected


def test_a_window_of_the_length_sees_everything():
    assert SlidingWindow(20).mask(20, 20).all()
    assert not SlidingWindow(19).mask(20, 20).all()
    assert Longformer(38, 0).mask(20, 20).all()


def test_longformer_is_window_and_global():
    mask = Longformer(4, 2).mask(10, 10)
    assert mask[:2].all()
    assert mask[:, :2].all()
    assert set(np.flatnonzero(mask[6])) == {0, 1, 4, 5, 6, 7, 8}


def test_bigbird_rows_hold_window_global_and_random_blocks():
    blocks = BigBird(4, window_blocks=3, global_blocks=2, random_blocks=2, seed=1).blocks(64, 64)
    assert blocks[0].all()
    assert blocks[-1].all()
    assert blocks[:, [0, -1]].all()
    for row in range(2, 14):
        assert blocks[row, row - 1 : row + 2].all()
        others = 3 + len({0, 15} - {row - 1, row, row + 1})
        assert blocks[row].sum() == others + 2
    other = BigBird(4, random_blocks=2, seed=2).blocks(64, 64)
    assert (other != blocks).any()
    np.testing.assert_array_equal(BigBird(4, random_blocks=2, seed=1).blocks(64, 64), blocks)


@every
def test_patterns_are_hashable_and_have_a_json_form(pattern):
    assert fields.from_json(fields.to_json(pattern), kind="pattern") == pattern
    assert hash(pattern) == hash(fields.from_json(fields.to_json(pattern)))


def test_mistakes_are_named():
    cases = [
        (lambda: SlidingWindow(0), "window of the pattern SlidingWindow is 0; expected"),
        (lambda: Strided(0), "stride of the pattern Strided is 0"),
        (lambda: Strided(4, part="merge"), "'merge'; the nearest is 'merged'"),
        (lambda: Fixed(4, 5), "summary of the pattern Fixed is 5; expected at most its stride, 4"),
        (lambda: Longformer(3), "window of the pattern Longformer is 3; expected an even number.*nearest is 4"),
        (lambda: Longformer(2, -1), "global_tokens .* is -1"),
        (lambda: BigBird(0), "block of the pattern BigBird is 0"),
        (lambda: BigBird(window_blocks=2), "window_blocks .* is 2; expected an odd number"),
        (lambda: BigBird().visible(0, 1), "depend on the length"),
    ]
    for make, message in cases:
        with pytest.raises(UsageError, match=message):
            make()
