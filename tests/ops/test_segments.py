"""Runs and positions against loops in Python, and in any chunks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arch_jax.errors import UsageError
from arch_jax.ops.segments import runs_and_positions, runs_and_positions_reference

TIME = 9
ROWS = st.lists(st.integers(0, 3), min_size=TIME, max_size=TIME)
compiled = jax.jit(runs_and_positions)


def test_a_row_by_hand():
    run, position, state = compiled(jnp.asarray([[0, 5, 5, 0, 5, 2, 5, 0]]))
    np.testing.assert_array_equal(run[0], [0, 1, 1, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(position[0], [0, 0, 1, 0, 2, 0, 0, 0])
    assert [int(x[0]) for x in state] == [5, 3, 0]


def test_nothing_but_padding_leaves_the_state():
    state = tuple(jnp.asarray([x, 2 * x]) for x in (4, 7, 3))
    run, position, new = compiled(np.zeros((2, 3), int), *state)
    assert not np.any(run)
    assert not np.any(position)
    for a, b in zip(new, state):
        np.testing.assert_array_equal(a, b)
    _, _, fresh = compiled(np.zeros((1, 3), int))
    assert [int(x[0]) for x in fresh] == [0, 0, -1]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROWS, min_size=2, max_size=2))
def test_equals_the_loops(rows):
    got = compiled(np.asarray(rows))
    expected = runs_and_positions_reference(rows)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROWS, min_size=2, max_size=2), cuts=st.lists(st.integers(0, TIME), max_size=3))
def test_any_chunks_equal_the_whole(rows, cuts):
    rows = np.asarray(rows)
    whole = compiled(rows)
    edges = [0, *sorted(cuts), TIME]
    state, parts = (), []
    for start, end in itertools.pairwise(edges):  # some chunks are empty
        run, position, state = compiled(rows[:, start:end], *state)
        parts.append((run, position))
    for i in range(2):
        np.testing.assert_array_equal(np.concatenate([p[i] for p in parts], axis=1), whole[i])
    for a, b in zip(state, whole[2]):
        np.testing.assert_array_equal(a, b)


def test_a_part_of_the_state_is_refused():
    with pytest.raises(UsageError, match="got 1 of the 3 arrays"):
        runs_and_positions(jnp.ones((1, 2), int), last_id=jnp.ones((1,), int))
