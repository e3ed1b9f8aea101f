"""Sums in at least float32: what is read often, and what a loop shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.ops import precision

FEW_BITS = ["bfloat16", "float16"]


@pytest.mark.parametrize("dtype", FEW_BITS)
def test_a_row_that_is_read_often(dtype):
    """The gradient of a row read 4,096 times; a bfloat16 sum of ones ends at 256, one of float16 at 2,048."""
    table, index = jnp.ones((5, 3), dtype), jnp.full((64, 64), 2)
    slope = jax.grad(lambda table: precision.look_up(table, index).astype(jnp.float32).sum())(table)
    assert slope.dtype == dtype
    np.testing.assert_array_equal(slope[2].astype(np.float32), 4096)
    np.testing.assert_array_equal(slope[jnp.array([0, 1, 3, 4])].astype(np.float32), 0)


def test_reading_is_indexing():
    """Values, both modes of derivatives and `vmap`, against a product with one-hot rows."""
    table = jax.random.normal(jax.random.key(0), (5, 3))
    index = jnp.array([[0, 4, 4], [2, 0, 0]])
    dense = lambda table: jnp.tanh(jax.nn.one_hot(index, 5) @ table)
    read = lambda table: jnp.tanh(precision.look_up(table, index))
    np.testing.assert_allclose(read(table), dense(table), rtol=1e-6)
    for derivative in (jax.jacrev, jax.jacfwd, jax.hessian):
        np.testing.assert_allclose(derivative(read)(table), derivative(dense)(table), atol=1e-6)
    rows = jax.vmap(precision.look_up, (None, 0))(table, index)
    np.testing.assert_array_equal(rows, table[index])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_outside_the_table_is_not_a_number(dtype):
    """Also where the index's type has no room for a place outside, as uint8 has none in a table of 256 rows."""
    rows = np.iinfo(dtype).max + 1 if np.dtype(dtype).itemsize == 1 else 5
    index = jnp.array([-1 if np.issubdtype(dtype, np.signedinteger) else rows - 1, 0, 3], dtype)
    found = precision.look_up(jnp.ones((rows, 2)), index)
    assert np.isnan(found[0]).all() == (index[0] < 0)
    np.testing.assert_array_equal(found[1:], 1)
    beyond = precision.look_up(jnp.ones((3, 2)), jnp.array([3, 100], dtype))
    assert np.isnan(beyond).all()
    slope = jax.grad(lambda table: jnp.nansum(precision.look_up(table, jnp.array([3, 0], dtype))))(jnp.ones((3, 2)))
    np.testing.assert_array_equal(slope, [[1, 1], [0, 0], [0, 0]])


@pytest.mark.parametrize("dtype", FEW_BITS)
def test_what_a_loop_shares(dtype):
    """The gradient of a weight used at 4,096 steps; the values are those of `jax.lax.scan`, bit for bit."""
    xs, weight = jnp.ones(4096, dtype), jnp.asarray(0.5, dtype)

    def loop(scan, weight):
        def body(carry, x):
            return carry, (weight * x).astype(jnp.float32)

        return scan(body, jnp.zeros((), dtype), xs)

    assert float(jax.grad(lambda w: loop(precision.scan, w)[1].sum())(weight)) == 4096
    assert float(jax.grad(lambda w: loop(jax.lax.scan, w)[1].sum())(weight)) < 4096  # why there is another
    for ours, theirs in zip(loop(precision.scan, weight), loop(jax.lax.scan, weight)):
        np.testing.assert_array_equal(ours, theirs)


def test_a_loop_closes_over_whatever_it_likes():
    """Integers, masks, keys and static numbers beside weights; gradients in the carry and in what is read, too."""
    weight, mask, count = jnp.array([0.5, 2.0]), jnp.array([True, False]), 3
    key, place = jax.random.key(0), jnp.array([1, 0])

    def loss(scan, weight, start, xs):
        def body(carry, x):
            noise = jax.random.normal(key, (2,)) * mask
            carry = jnp.tanh(carry * weight + x + noise)[place] / count
            return carry, {"out": carry.sum()}

        end, out = scan(body, start, xs)
        return end.sum() + jnp.square(out["out"]).sum()

    given = weight, jnp.array([0.1, -0.3]), jnp.linspace(-1, 1, 10).reshape(5, 2)
    ours, theirs = (
        jax.value_and_grad(lambda *a, scan=scan: loss(scan, *a), argnums=(0, 1, 2))(*given)
        for scan in (precision.scan, jax.lax.scan)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_entries_of_each_row():
    index = jnp.array([[3, 0, 3], [1, 1, 2]])
    for x in (jnp.arange(24).reshape(2, 4, 3), jnp.arange(8).reshape(2, 4), jnp.arange(24.0).reshape(2, 4, 3)):
        np.testing.assert_array_equal(precision.picked(x, index), np.stack([x[0][index[0]], x[1][index[1]]]))
    assert precision.picked(jnp.ones((2, 0, 3)), jnp.zeros((2, 0), int)).shape == (2, 0, 3)
    slope = jax.grad(lambda x: precision.picked(x, index).sum())(jnp.ones((2, 4), jnp.bfloat16))
    np.testing.assert_array_equal(slope.astype(np.float32), [[1, 0, 0, 2], [0, 2, 1, 0]])


def test_only_few_bits_are_widened():
    tree = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32), "c": jnp.ones(2, jnp.int8), "d": None}
    wide = precision.at_least_float32(tree)
    assert (wide["a"].dtype, wide["b"].dtype, wide["c"].dtype, wide["d"]) == (jnp.float32, jnp.float32, jnp.int8, None)
    assert precision.like(wide, tree)["a"].dtype == jnp.bfloat16
